"""`python -m ccnet_cli.cli`, which is how a run starts its own processes."""

from ccnet_cli.cli import main

main()
