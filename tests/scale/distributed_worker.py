"""One of two processes of a training run: ``python -m tests.scale.distributed_worker PORT PROCESS FOLDER``.

Both train a small model with BackSlash on weights that are sharded over their eight devices, reshape it by
DeepShape, and write one checkpoint, each its own shards.
"""

import sys

import jax

PROCESSES, DEVICES = 2, 4


def main(port, process, folder):
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, process)
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import ggjax
    from ggjax.codec.container import _safetensors

    assert jax.process_count() == PROCESSES and jax.device_count() == PROCESSES * DEVICES
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"both": P("x", "y"), "rows": P(("x", "y")), "columns": P(None, "y"), "bias": P(), "small": P("x")}
    shapes = {"both": (128, 96), "rows": (64, 100), "columns": (50, 64), "bias": (7,), "small": (8, 3)}
    shardings = {k: NamedSharding(mesh, s) for k, s in specs.items()}

    def init():
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return {k: 0.05 * jax.random.normal(key, s) for key, (k, s) in zip(keys, shapes.items(), strict=True)}

    params = jax.jit(init, out_shardings=shardings)()
    tx = optax.chain(optax.adam(1e-3), ggjax.backslash(2.0, clamp=True))
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: sum(jnp.sum((v - 0.01) ** 2) for v in p.values()))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    params, info = ggjax.deepshape(params, step=2.0**-10, min_count=0)
    assert all(params[k].sharding.is_equivalent_to(shardings[k], params[k].ndim) for k in params)
    assert 0 < float(info.after.nu) < float(info.before.nu)

    ggjax.save_file(params, f"{folder}/model.ggjax.safetensors", step=2.0**-10)
    ggjax.save_file(params, f"{folder}/exact.ggjax.safetensors", lossless=True)
    back = ggjax.decompress(ggjax.compress(params, lossless=True))
    for k in params:
        assert back[k].sharding.is_equivalent_to(shardings[k], params[k].ndim)
        for a, b in zip(back[k].addressable_shards, params[k].addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)

    if process == 0:
        with open(f"{folder}/over.ggjax.safetensors", "wb") as f:
            f.write(b"what one process saved")
    for s in (2.0**-8, 2.0**-9):
        ggjax.save_file(params, f"{folder}/over.ggjax.safetensors", step=s)

    ggjax.save_file(params, f"{folder}/four.ggjax.safetensors", bits=4)  # one step for all blocks of a leaf
    small = ggjax.compress(params, bits=4)
    assert all(abs(b - 4) < 0.6 for b in small.bits.values()), small.bits

    # The whole arrays, for the test to compare with.
    whole = jax.jit(lambda p: p, out_shardings=NamedSharding(mesh, P()))(params)
    if process == 0:
        np.savez(f"{folder}/params.npz", **{k: np.asarray(v) for k, v in whole.items()})

    like = {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=shardings[k]) for k, s in shapes.items()}
    loaded = ggjax.load_file(f"{folder}/exact.ggjax.safetensors.index.json", like=like)
    for k in params:
        for a, b in zip(loaded[k].addressable_shards, params[k].addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)

    # A file that one process wrote, of a leaf of four chunks, of which each process needs two.
    big = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    ggjax.save_file({"big": big}, f"{folder}/big.ggjax.safetensors", step=2.0**-4)
    read, real = [], _safetensors.read_bytes
    _safetensors.read_bytes = lambda file, begin, end: (read.append(end - begin), real(file, begin, end))[1]
    index = f"{folder}/big.ggjax.safetensors.index.json"
    loaded = ggjax.load_file(index, sharding=NamedSharding(mesh, P(("x", "y"))))["big"]
    _safetensors.read_bytes = real
    want = np.rint(big * 16) / 16
    for shard in loaded.addressable_shards:
        np.testing.assert_array_equal(shard.data, want[shard.index])
    (size,) = [t.nbytes for t in ggjax.codec.inspect_file(index).tensors]
    assert len(loaded.addressable_shards) == DEVICES and 0.45 < sum(read) / size < 0.55, (read, size)
    print(f"process {process} is done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
