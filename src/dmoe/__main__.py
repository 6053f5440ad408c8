"""`python -m dmoe …` is `dmoe …`: what torchrun starts."""

from dmoe.cli.main import main
from dmoe.distributed.launch import ends_at_once
from dmoe.shards.remote import remove_folders


def _work() -> None:
    try:
        main()
    finally:
        remove_folders()


ends_at_once(_work)
