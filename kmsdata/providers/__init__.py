"""Where master keys are kept: `local`, a keystore in a file."""
