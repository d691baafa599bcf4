"""What the command line consists of; `graphpass.cli` joins it."""
