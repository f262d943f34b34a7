"""Device profiles that ship with edgescribe, one TOML file for each device."""
