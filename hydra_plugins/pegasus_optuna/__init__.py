"""The plugin of the sweeper `optuna`. Hydra finds sweepers only in this namespace; see `pegasus_lightning.launch`."""
