"""Bits per weight against loss, for every way to train and to round that this library has.

``python -m tests.benchmarks.frontier --help`` says what is compared and how. What is in which file:

  problems   the language model and the digits network: first weights, batches, losses
  methods    the ways to train, and the settings that are tried of each
  loop       candidates for a training of ours with rounding in the loop
  training   one training, of any method
  rounding   the ways to round, and the frontier of one trained model by each of them
  runs       trainings and frontiers that outlive the process
  plan       which settings are tried, and which are then tested
  report     the tables of frontier.json
  plot       its picture
  pruning    how many weights can be set to zero
"""
