"""The plugin of the launcher `pool`. Hydra finds launchers only in this namespace; see `pegasus_lightning.launch`."""
