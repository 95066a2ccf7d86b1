"""What the commands say of themselves."""

DEMO = """\
Train a byte-level language model on the source text of the Python standard library (nothing is downloaded),
twice, from the same initial weights and with as many steps on the same bytes:

  (a) with Adam
  (b) with Adam and BackSlash, then fine-tuned with Adam alone

The initial weights are the Gaussian ones that suit (a) best, of a quarter of Glorot's variance;
python -m tests.benchmarks.arms measures what they give by themselves.

Then reshape the weights of (b) by DeepShape, train a little more, round all of them to RF8, and write all of
them to compressed files.

Prints one table (test loss in bits per byte, shape nu of the fitted law, bits per parameter at three
quantization steps by entropy and by exp-Golomb codes, loss in RF8), one of the sizes of the files, and writes
into the output folder

  life.png       the weights and their laws, and the frontier of bits against loss for (a) and (b)
  results.json   the same numbers: "table", "frontier", "saved" (bits at equal loss), "settings"
  *.ggjax.safetensors   the models, compressed

Takes some 6 minutes on 2 cores, --quick two. Needs the demo extra: pip install 'ggjax[demo]'."""

COMPRESS = """\
Compress a .safetensors checkpoint of any model to a smaller file, which any safetensors reader can list.

  ggjax compress model.safetensors --lossless           every bit comes back
  ggjax compress model.safetensors --bits 4             4 bits per parameter, never more
  ggjax compress model.safetensors --step 0.004 --exclude embed
  ggjax compress model.safetensors --loss-rise 0.01 --sensitivity known.safetensors

What is rounded is kernels: tensors of two and more dimensions that are no scale of a normalization layer, no
statistic and no buffer. The other floating ones are kept losslessly; --include REGEX rounds all that it matches
(--include . all). Tensors that are not floating, not selected or of fewer than 1024 elements are kept as they
are. Those that cannot be rounded (NaN among their weights, say) and 8-bit codes with scales beside them are
kept losslessly, and a line on stderr names them.

With --sensitivity, what a change of each weight costs (ggjax.sensitivity.estimate tells it from some batches,
save writes it), every row and column of a matrix has a step of its own, and each rounding error is made good
by the weights after it. The sensitivity must cover every tensor that is rounded, by its name (dots may stand
for slashes). All tensors are held in memory then.

A pipe (-, /dev/stdin) is copied to a temporary file first."""
DECOMPRESS = """\
Write the plain .safetensors checkpoint of a compressed one, with the names, shapes and dtypes it had."""
INFO = """\
Print every tensor of a compressed checkpoint: dtype, shape, kind of coding, step, bytes, bits per parameter; of
one that was calibrated its share of the bytes, and what it was predicted to add to the loss."""
VERIFY = """\
Check every CRC-32 of a compressed checkpoint and decode all of it. Exit code 0 if all is well, 2 if not."""
STATS = """\
Print, for every floating tensor of 1024 weights and more of a checkpoint, the shape nu and the standard
deviation of its weights, and, at a step (a quarter of the standard deviation unless one is given), their
entropy and the signal-to-noise ratio. --bits and --snr-db are asked of all of them together, with one step, as
ggjax compress does."""
