"""The help text of the training command, in a module of its own because PyTorch is slow to import."""

from __future__ import annotations

COMMAND = "python -m pegasus_lightning"
COMMANDS = {
    "train": "train a run, or with -m a sweep (this command; the word may be left out)",
    "generate": "make pegasi: mix the codes of a horse and a bird",
    "evaluate": "measure recognisability, realism and uniqueness, with controls",
    "report": "one HTML page of all runs in a folder",
    "runs": "list, show and compare runs",
    "panel": "ask people, blind, what pegasi show",
    "demo": "a page in the browser that mixes pictures",
    "export": "weights as safetensors or ONNX",
    "completion": "tab completion for bash and zsh",
}
COMMAND_NAMES = tuple(COMMANDS)


def help_text() -> str:
    """Return the text that `--help` prints."""
    from pegasus_lightning.utils.compose import GROUPS, describe_presets  # Hydra, which some commands do not need

    commands = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
    return f"""Train adversarial autoencoders on two classes of images and show what mixes of their codes decode to.

Commands (each has --help; `pegasus-lightning evaluate ...` is the same as `python -m pegasus_lightning.evaluate ...`)
{commands}

Examples
  {COMMAND} model=acai trainer.gpus=1
  {COMMAND} model=vae data=silhouettes trainer=quick
  {COMMAND} -m model=vae,acai seed=0,1 data=image_folder data.root=photos
  {COMMAND} -m experiment=ablation seed=0,1,2

Presets (GROUP=NAME sets all fields of a group; each field can be set too)
{describe_presets(GROUPS)}

Fields, for example
  model.networks.latent_dim=64  model.networks.conv_layers=4  model.weights.kl=0.1
  'data.classes=[cat,ship]'  data.batch_size=128  trainer.max_epochs=200  trainer.max_time=2h
  trainer.gpus=0 (CPU), 1, 2, 'trainer.gpus=[0,3]' (default: one GPU if available, else the CPU)
  logger=csv, wandb, mlflow, trackio, 'logger=[tensorboard,wandb]' (default: tensorboard)
  trainer.dry_run=true (try a few batches of everything)  init_from=RUN (begin with the weights of another run)
  seed=1  runs_dir=runs  resume=auto (the same command again continues the run), never, must

  --cfg job        show the whole configuration      --config-dir=FOLDER   add your own presets
  -m               sweep: one run for each combination, in parallel; the same command again continues it
    hydra.launcher.slots=4 (parallel runs on the CPU)  hydra.launcher.jobs_per_gpu=2  hydra.launcher.rank_by=final/kl
    hydra.launcher.evaluate=true (evaluate the runs too, in the same slots)
    hydra/launcher=pool (this machine), slurm, ray_cluster
    hydra/sweeper=optuna (search: 'model.weights.kl=interval(0.1,2.0)')
"""
