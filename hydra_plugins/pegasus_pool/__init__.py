"""Hydra finds launchers in this namespace alone; the code behind it is `pegasus_lightning.launch`."""
