"""From keys to words: tokens, their models, and the two coders, rANS and zstd."""
