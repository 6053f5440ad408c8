"""`python -m dmoe …` is `dmoe …`: what torchrun starts."""

from dmoe.cli.main import main

main()
