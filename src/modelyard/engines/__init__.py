"""How engines run: pure descriptions, one file per engine. Nobody outside this package asks an engine's name."""
