"""`python -m dmoe …` is `dmoe …`: what torchrun starts."""

from dmoe.cli.main import main
from dmoe.distributed.launch import ends_at_once

ends_at_once(main)
