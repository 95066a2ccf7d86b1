"""The kinds of real leaf names, as libraries and published checkpoints spell them."""

import pytest

from ggjax._internal.names import kind_of

NAMES = {
    "weight": """
        params/Dense_0/kernel  params/Conv_0/kernel  params/ScanBlock_0/Dense_0/kernel
        params/query/kernel  params/value/kernel  value/kernel/value  layers/0/kernel/value
        kernel/value  lstm/if_/kernel/value  embedding/kernel  params/Transformer/posembed_input/kernel
        normal_head/kernel  w  W  w1  w_12  wq  linear/w  conv1_d/w  multi_head_attention/query/w
        __layer_stack_no_per_layer/linear/w  vit/~/linear/w  layers/0/weight  mlp/layers/1/weight
        mha/query_proj/weight  gru/weight_ih  lstm/weight_hh  h.0.attn.c_attn.weight
        h.0.mlp.c_fc.weight  lm_head.weight  layer1.0.conv1.weight  layer1.0.downsample.0.weight
        model.layers.3.self_attn.q_proj.weight  encoder.layers.0.self_attn.in_proj_weight  fc.weight
        bert.encoder.layer.0.attention.self.query.weight  cls.predictions.transform.dense.weight
        rnn.weight_hh_l0  conv_pre.weight_v  conv.parametrizations.weight.original1
        vit.embeddings.patch_embeddings.projection.weight  patch_embed.proj.weight  embed_out.weight
        model.embeddings_project.weight  t_embedder.mlp.0.weight  time_embed.0.weight
        time_embedding.linear_1.weight  blocks.0.adaLN_modulation.1.weight  layer_norm_proj.weight""",
    "bias": """
        params/Dense_0/bias  params/LayerNorm_0/bias  key/bias/value  bias  b  b1  b_2  bq  linear/b
        layer_norm/offset  conv/bias  gru/bias_n  rnn.bias_ih_l0  h.0.ln_1.bias  h.0.attn.c_attn.bias
        encoder.layer.0.in_proj_bias  bert.embeddings.LayerNorm.beta  bert.embeddings.LayerNorm.bias
        biases/0  blocks.0.attn.q_bias  conv.proj_b  visual.bn1.bias""",
    "scale": """
        params/LayerNorm_0/scale  params/ScanBlock_0/LayerNorm_0/scale  params/RMSNorm_0/scale
        bn/scale/value  batch_norm/scale  layer_norm/scale  __layer_stack_no_per_layer/layer_norm/scale
        norm/weight  norms/0/weight  ln/weight  rms/weight  h.0.ln_1.weight  transformer.ln_f.weight
        bn1.weight  layer1.0.bn2.weight  model.norm.weight  model.layers.0.input_layernorm.weight
        model.layers.0.post_attention_layernorm.weight  model.layers.0.self_attn.q_norm.weight
        encoder.layer_norm.weight  bert.embeddings.LayerNorm.weight  bert.embeddings.LayerNorm.gamma
        visual.ln_pre.weight  attn_ln.weight  ln_1/g  layer_normalization/gamma  ln1  norm
        params/WeightNorm_0/Dense_0/kernel/scale  wn/scales/('kernel',)  wn/g  conv_pre.weight_g
        conv.parametrizations.weight.original0
        mlp.weight_scale_inv  mlp.weight_scale_2  mlp.scale_weight  mlp.weight.absmax  q.weight_zero_point""",
    "statistic": """
        batch_stats/BatchNorm_0/mean  batch_stats/BatchNorm_0/var
        batch_stats/SpectralNorm_0/Dense_1/kernel/u  bn/mean/value  batch_norm/~/mean_ema/average
        batch_norm/~/var_ema/hidden  bn1.running_mean  bn1.running_var  bn/moving_variance
        sn/uv_index/init/0  bn/state_index/init/1  teacher_ema/linear/w""",
    "token": """
        cls  cls/value  params/cls  cls_token  vit.embeddings.cls_token  class_token  mask_token
        dist_token  dinov2.embeddings.register_tokens  reg_token  query_tokens  perceiver/latents
        soft_prompt""",
    "embedding": """
        params/Embed_0/embedding  embedding/value  embed/embeddings  token_embedder/embedding
        tok_embeddings.weight  wte/embedding  wpe.weight  transformer.wte.weight
        model.embed_tokens.weight  emb/weight  embed  embed/w  bert.embeddings.word_embeddings.weight
        bert.embeddings.position_embeddings.weight  pos_embed  pos  pos_emb
        params/Transformer/posembed_input/pos_embedding  visual.positional_embedding
        visual.class_embedding  patch_embed/pos_embed  encoder/relpos_bias/rel_embedding
        encoder.block.0.layer.0.relative_attention_bias.weight
        layers.0.blocks.0.attn.relative_position_bias_table  quantizer.codebook  label_emb.weight
        rel_pos_h""",
    "buffer": """
        mask  mask/value  causal_mask  attn.attn_mask  attention_mask  h.0.attn.bias
        transformer.h.11.attn.bias  transformer.h.0.attn.attention.bias  h.0.attn.masked_bias
        gpt_neox.layers.0.attention.bias  causal  tril  model.layers.0.self_attn.rotary_emb.inv_freq
        inv_freq  freqs_cis  rope.freqs  freqs_cos  cos_cached  sin  rope/cos
        bert.embeddings.position_ids  layers.0.blocks.0.attn.relative_position_index  alibi
        alibi_slopes  conv.weight_mask  cache/attention/cached_key  cached_value  kv_cache
        buffers/window  bn1.num_batches_tracked""",
    "adapter": """
        lora/lora_a  lora/lora_b/value  params/Dense_0/lora_b  w_lora_a
        model.layers.0.self_attn.q_proj.lora_A.default.weight  q_proj.lora_B.weight  lora_up.weight""",
    "special": """
        logit_scale  temperature  log_temperature  params/logit_scale  blocks.0.ls1.gamma  layer_scale
        encoder.layer_scale1  layer_scale1.lambda1  gamma_1  params/PReLU_0/negative_slope  mixer.A_log
        mixer.dt_bias  log_std  att.time_decay  att.time_mix_k""",
    "other": "0  0/1  proj  params/head  value  optimizer/count  layers/0  steps  (root)  ()",
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for k, table in NAMES.items() for n in table.split()])
def test_the_kind_of_real_names(name, kind):
    assert kind_of(name) == kind
