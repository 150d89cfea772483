"""Tests of presets, ranges of settings, and combinations that are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pegasus_lightning.generate import settings
from pegasus_lightning.generate.settings import GENERATE
from pegasus_lightning.launch.planning import jobs_of
from pegasus_lightning.models import MODELS
from pegasus_lightning.train.settings import TRAIN, Config, idle_players, parse_duration, validate
from pegasus_lightning.utils.compose import conf_folder, plain, presets, typed
from pegasus_lightning.utils.errors import UserError

PRESETS = [(path.parent.name, path.stem) for path in sorted(conf_folder().glob("*/*.yaml"))]
EIGHT = {
    "adversarial_vae",
    "two_fc_layers",
    "four_conv_layers",
    "spectral_norm",
    "vae_gan",
    "acai",
    "acai_paper",
    "vae",
}


def test_the_presets_lie_in_the_known_groups() -> None:
    assert {group for group, _ in PRESETS} <= {*TRAIN.groups, *GENERATE.groups}
    assert {name for group, name in PRESETS if group == "model"} >= EIGHT
    assert {name for group, name in PRESETS if group == "data"} >= {"cifar10", "image_folder", "silhouettes"}
    assert presets("data") == sorted(name for group, name in PRESETS if group == "data")


@pytest.mark.parametrize(("group", "name"), [preset for preset in PRESETS if preset[0] in TRAIN.groups])
def test_every_preset_composes_and_validates(group: str, name: str) -> None:
    overrides = [f"{group}={name}"]
    if OmegaConf.is_missing(TRAIN.compose(overrides).data, "root"):
        overrides.append("data.root=pictures")  # has no default
    for job in jobs_of(overrides, multirun=True):
        config = TRAIN.compose(job)
        validate(config)
        values = plain(config)  # raises if a value is missing
        assert values["model"]["name"] in MODELS
        assert OmegaConf.get_type(config.model) is MODELS[values["model"]["name"]].Config  # typed: typos are refused


@pytest.mark.parametrize("name", presets("search"))
def test_every_search_preset_composes_and_validates(name: str) -> None:
    config = GENERATE.compose([f"search={name}", "run=[somewhere]"])
    settings.validate(config)
    assert plain(config)["search"]["method"] == {"winged": "best_of", "guided_winged": "guided"}.get(name, name)
    assert OmegaConf.get_type(config) is settings.GenerateConfig  # typed: typos are refused


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_every_preset_says_what_it_is_in_its_first_comment(group: str, name: str) -> None:
    lines = (conf_folder() / group / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("# ") and not line.startswith("# @")]
    assert comments
    assert 10 < len(comments[0]) <= 120


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            "adversarial_vae",
            {
                "name": "adversarial_vae",
                "networks.conv_layers": 3,
                "networks.fc_layers": 1,
                "networks.spectral_norm": "none",
                "networks.critic_batch_norm": True,
                "networks.latent_dim": 128,
                "weights.adversarial": 1.0,
                "reconstruction": "bce",
                "sample_codes": True,
            },
        ),
        ("two_fc_layers", {"name": "adversarial_vae", "networks.fc_layers": 2, "networks.conv_layers": 3}),
        ("four_conv_layers", {"name": "adversarial_vae", "networks.conv_layers": 4, "networks.fc_layers": 1}),
        (
            "spectral_norm",
            {
                "name": "adversarial_vae",
                "networks.spectral_norm": "critic",
                "networks.critic_batch_norm": False,
                "networks.batch_norm": True,
            },
        ),
        ("vae_gan", {"name": "vae_gan", "weights.reconstruction": 0.0, "weights.feature": 1.0}),
        (
            "critic_without_batch_norm",
            {"networks.spectral_norm": "none", "networks.critic_batch_norm": False, "networks.batch_norm": True},
        ),
        (
            "acai",
            {
                "name": "acai",
                "reconstruction": "bce",
                "sample_codes": True,
                "weights.kl": 1.0,
                "weights.reconstruction": 1.0,
                "weights.adversarial": 0.5 * 3072 / 4,  # lambda .5 beside the paper's mean over pixels from -1 to 1
                "networks.critic_batch_norm": False,
                "autoencoder_optimizer.lr": 1e-3,  # one learning rate for both players
                "critic_optimizer.lr": 1e-3,
                "critic_optimizer.clip": 1.0,
            },
        ),
        ("acai_document", {"name": "acai", "sample_codes": True, "weights.adversarial": 0.5}),
        (
            "acai_paper",
            {
                "name": "acai",
                "reconstruction": "mse",
                "sample_codes": False,
                "weights.kl": 0.0,
                "weights.adversarial": 0.5,
                "weights.reconstruction": 0.0013,  # the paper's mean over pixels from -1 to 1: 4 / 3072 of our sum
                "networks.latent_dim": 256,
                "networks.batch_norm": False,
                "autoencoder_optimizer.lr": 1e-4,
                "critic_optimizer.beta1": 0.9,
            },
        ),
        ("vae", {"name": "vae", "weights.kl": 1.0}),
    ],
)
def test_what_distinguishes_a_model_preset(preset: str, expected: dict[str, object]) -> None:
    model = TRAIN.compose([f"model={preset}"]).model
    assert {key: OmegaConf.select(model, key) for key in expected} == expected
    assert ("adversarial" in model.weights) == (model.name in ("adversarial_vae", "acai"))


def test_what_the_command_composes_by_itself() -> None:
    config = plain(TRAIN.compose([]))
    assert config["model"]["name"] == "adversarial_vae"
    assert config["data"] | {"root": ""} == {
        "source": "cifar10",
        "classes": ["horse", "bird"],
        "batch_size": 64,
        "flip": True,
        "validation_fraction": 0.05,
        "on_device": "auto",
        "root": "",
        "download": True,
    }
    assert config["trainer"]["max_epochs"] == 1000
    assert config["trainer"]["gpus"] is None
    assert (config["seed"], config["runs_dir"], config["resume"]) == (0, "runs", "auto")


def test_what_the_command_line_says_wins_over_the_preset() -> None:
    config = TRAIN.compose(["model=acai_paper", "model.networks.latent_dim=7", "trainer=quick", "trainer.max_epochs=5"])
    assert config.model.networks.latent_dim == 7
    assert config.trainer.max_epochs == 5
    assert TRAIN.compose(["trainer=quick"]).trainer.max_epochs == 12
    quiet = TRAIN.compose(["callbacks=quiet"]).callbacks
    assert (quiet.progress_bar, quiet.images) == (False, False)


def test_the_jobs_of_a_sweep() -> None:
    jobs = jobs_of(["model=vae,acai", "seed=0,1", "data=silhouettes"], multirun=True)
    assert sorted(sorted(job) for job in jobs) == [
        ["data=silhouettes", f"model={model}", f"seed={seed}"] for model in ("acai", "vae") for seed in (0, 1)
    ]
    assert jobs_of(["seed=3"], multirun=False) == [["seed=3"]]


# Ranges: the nearest values allowed on both sides of each limit.


@pytest.fixture(scope="module")
def silhouettes() -> DictConfig:
    return TRAIN.compose(["data=silhouettes"])


@pytest.fixture
def configured(silhouettes: DictConfig) -> Callable[..., DictConfig]:
    """configured("a.b=1", ...): the typed configuration with these settings."""

    def build(*settings: str) -> DictConfig:
        config = OmegaConf.merge(silhouettes, OmegaConf.from_dotlist(list(settings)))
        assert isinstance(config, DictConfig)
        return config

    return build


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("model.networks.conv_layers=2", "model.networks.conv_layers=1"),
        ("model.networks.conv_layers=4", "model.networks.conv_layers=5"),
        ("model.networks.latent_dim=1", "model.networks.latent_dim=0"),
        ("model.networks.channels=1", "model.networks.channels=0"),
        ("model.networks.fc_layers=1", "model.networks.fc_layers=0"),
        ("model.networks.spectral_norm=none", "model.networks.spectral_norm=both"),
        ("model.networks.upsampling=nearest", "model.networks.upsampling=bilinear"),
        ("model.networks.decoder=residual", "model.networks.decoder=residuals"),
        ("model.networks.latent=spatial", "model.networks.latent=space"),  # 128 is 8 channels of 4 x 4
        ("model.networks.critic_channels=1", "model.networks.critic_channels=0"),
        ("model.networks.critic_channels=null", "model.networks.critic_channels=-3"),
        ("model.adversarial_loss=hinge", "model.adversarial_loss=wasserstein"),
        ("model.critic_augmentation=[cutout,translation]", "model.critic_augmentation=[cutout,rotation]"),
        ("model.critic_augmentation=[]", "model.critic_augmentation=[Cutout]"),
        ("model.r1=0", "model.r1=-0.1"),
        ("model.r1=10", "model.r1=inf"),
        ("model.reconstruction=mse", "model.reconstruction=l2"),
        ("model.reconstruction=l1", "model.reconstruction=mae"),
        ("model.r2=0", "model.r2=-0.1"),
        ("model.adversarial_loss=relativistic", "model.adversarial_loss=relative"),
        ("model.networks.residual_blocks=0", "model.networks.residual_blocks=-1"),
        ("model.networks.critic_layers=null", "model.networks.critic_layers=1"),
        ("model.networks.critic_layers=4", "model.networks.critic_layers=5"),
        ("model.critic_optimizer.lr=0", "model.critic_optimizer.lr=-1e-9"),
        ("model.autoencoder_optimizer.beta1=0", "model.autoencoder_optimizer.beta1=1"),
        ("model.autoencoder_optimizer.beta2=0.9999", "model.autoencoder_optimizer.beta2=-0.1"),
        ("model.autoencoder_optimizer.clip=null", "model.autoencoder_optimizer.clip=0"),
        ("model.critic_optimizer.clip=0.5", "model.critic_optimizer.clip=inf"),
        ("model.ema_decay=0.999", "model.ema_decay=1"),
        ("model.ema_decay=null", "model.ema_decay=0"),
        ("model.weights.kl=0", "model.weights.kl=-0.1"),
        ("model.weights.kl=100", "model.weights.kl=nan"),
        ("model.weights.adversarial=1", "model.weights.adversarial=inf"),
        ("data.batch_size=2", "data.batch_size=1"),
        ("data.validation_fraction=0.5", "data.validation_fraction=0"),
        ("data.validation_fraction=0.01", "data.validation_fraction=1"),
        ("data.classes=[bird,pegasus]", "data.classes=[bird,bird]"),
        ("data.classes=[pegasus,horse]", "data.classes=[bird,horse,pegasus]"),
        ("data.on_device=true", "data.on_device=maybe"),
        ("data.on_device=False", "data.on_device=cuda"),
        ("trainer.gpus=[0,1]", "trainer.gpus=[]"),
        ("trainer.gpus=null", "trainer.gpus=-1"),
        ("trainer.gpus=2", "trainer.gpus=true"),
        ("trainer.gpus=[3]", "trainer.gpus=[a]"),
        ("trainer.cpu_processes=2", "trainer.cpu_processes=0"),
        ("trainer.max_epochs=1", "trainer.max_epochs=0"),
        ("trainer.max_time=1.5h", "trainer.max_time=soon"),
        ("trainer.threads=null", "trainer.threads=0"),
        ("trainer.precision=32", "trainer.precision=64"),
        ("trainer.log_every_n_steps=1", "trainer.log_every_n_steps=0"),
        ("trainer.checkpoint_every_n_epochs=1", "trainer.checkpoint_every_n_epochs=0"),
        ("trainer.validate_every_n_epochs=1", "trainer.validate_every_n_epochs=0"),
        ("callbacks.image_columns=1", "callbacks.image_columns=0"),
        ("callbacks.image_scale=1", "callbacks.image_scale=0"),
        ("callbacks.health_warmup_epochs=0", "callbacks.health_warmup_epochs=-1"),
        ("callbacks.health_warmup_batches=0", "callbacks.health_warmup_batches=-1"),
        ("callbacks.health_min_active_dimensions=0", "callbacks.health_min_active_dimensions=-1"),
        ("callbacks.health_min_critic_skill=0", "callbacks.health_min_critic_skill=-0.1"),
        ("callbacks.health_min_critic_skill=0.99", "callbacks.health_min_critic_skill=1"),
        ("callbacks.health_min_variety=0", "callbacks.health_min_variety=-0.1"),
        ("callbacks.health_min_variety=0.99", "callbacks.health_min_variety=nan"),
        ("resume=must", "resume=yes"),
        ("seed=9223372036854775807", "seed=9223372036854775808"),
        ("seed=0", "seed=-1"),
        ("run_name=my-run_1", "run_name=my/run"),
        ("run_name=null", "run_name=''"),
        ("experiment_name=a.b", "experiment_name='a b'"),
        ("experiment_name=dry_run", "experiment_name=.dry_run"),  # which is removed
    ],
)
def test_limits(configured: Callable[..., DictConfig], allowed: str, refused: str) -> None:
    validate(configured(allowed))
    with pytest.raises(UserError) as error:
        validate(configured(refused))
    key = refused.partition("=")[0]
    assert key in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.promise(9)
@pytest.mark.parametrize(("layers", "allowed", "refused"), [(2, 192, 128 - 16), (3, 48, 40), (4, 8, 6)])
def test_a_spatial_code_is_laid_out_on_the_places_of_the_last_map(
    configured: Callable[..., DictConfig], layers: int, allowed: int, refused: int
) -> None:
    spatial = ("model.networks.latent=spatial", f"model.networks.conv_layers={layers}")
    validate(configured(*spatial, f"model.networks.latent_dim={allowed}"))
    validate(configured(spatial[1], f"model.networks.latent_dim={refused}"))  # a flat code may have any length
    places = {2: 64, 3: 16, 4: 4}[layers]
    with pytest.raises(UserError, match=rf"model\.networks\.latent_dim={refused} .*multiple of {places} "):
        validate(configured(*spatial, f"model.networks.latent_dim={refused}"))


# Further settings of model=pegasus and model=acai.


def of_model(name: str, *settings: str) -> DictConfig:
    """The typed configuration of a preset on silhouettes with these settings."""
    config = OmegaConf.merge(
        TRAIN.compose([f"model={name}", "data=silhouettes"]), OmegaConf.from_dotlist(list(settings))
    )
    assert isinstance(config, DictConfig)
    return config


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("allowed", "refused", "message"),
    [
        ("mix_ratio=[0,1]", "mix_ratio=[0,1.01]", "[0.3,0.7]"),
        ("mix_ratio=[0.5,0.5]", "mix_ratio=[0.51,0.5]", "within 0 to 1"),
        ("mix_ratio=[0,0]", "mix_ratio=[-0.01,0.5]", "within 0 to 1"),
        ("mix_ratio=[0.1,0.2]", "mix_ratio=[0.5]", "two numbers"),
        ("mix_ratio=[1,1]", "mix_ratio=[0.1,0.2,0.3]", "two numbers"),
        ("mix_ratio=[0.3,0.7]", "mix_ratio=[nan,0.7]", "within 0 to 1"),
        ("lessons=1", "lessons=0", "at least 1"),
        ("lesson_share=0.9", "lesson_share=0", "out of range"),
        ("mix_share=0.01", "mix_share=1.5", "out of range"),
        ("mix_share=0.5", "mix_share=0.6", "at most"),
        ("target_share=0.25", "target_share=0.26", "lesson_share"),
        ("move_share=0.5", "move_share=-0.5", "out of range"),
        ("target_share=0.1", "target_share=0", "out of range"),
        ("weights.alpha=0", "weights.alpha=-1", "at least 0"),
        ("weights.limb=2", "weights.limb=inf", "finite"),
        ("weights.fake_target=0", "weights.fake_target=-0.1", "at least 0"),
        ("autoencoder_optimizer.warmup=0", "autoencoder_optimizer.warmup=-1", "at least 0"),
        ("critic_optimizer.decay_after=1", "critic_optimizer.decay_after=0", "at least 1"),
        ("kl_warmup=3", "kl_warmup=-1", "at least 0"),
        ("ema_warmup=0", "ema_warmup=-1", "at least 0"),
        ("critic_ramp=0", "critic_ramp=-3", "at least 0"),
        ("critic_starts_at=5", "critic_starts_at=-5", "at least 0"),
        ("critic_steps=1", "critic_steps=0", "at least 1"),
        ("gradient_penalty=0", "gradient_penalty=-1", "at least 0"),
        ("adversarial_loss=wgan_gp", "adversarial_loss=wgan", "wgan_gp"),
        ("autoencoder_optimizer.weight_decay=0.1", "autoencoder_optimizer.weight_decay=-0.1", "at least 0"),
        ("critic_optimizer.schedule=constant", "critic_optimizer.schedule=cosine", "schedule_batches=N"),
        ("critic_optimizer.schedule=constant", "critic_optimizer.schedule=poly", "cosine"),
    ],
)
def test_limits_of_pegasus(allowed: str, refused: str, message: str) -> None:
    validate(of_model("pegasus", f"model.{allowed}"))
    with pytest.raises(UserError) as error:
        validate(of_model("pegasus", f"model.{refused}"))
    assert f"model.{refused.partition('=')[0]}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("settings", "refused", "message"),
    [
        (["model.kl_warmup=3", "model.kl_cycle=4"], "model.kl_cycle=3", "at least 4"),
        (["model.critic_optimizer.schedule=linear", "model.critic_optimizer.warmup=5",
          "model.critic_optimizer.schedule_batches=6"], "model.critic_optimizer.schedule_batches=5", "at least 6"),
        (["model.critic_optimizer.schedule=cosine", "model.critic_optimizer.schedule_batches=6"],
         "model.critic_optimizer.decay_after=3", "decay_after=null"),
        (["model.adversarial_loss=wgan_gp", "model.networks.critic_batch_norm=false"],
         "model.networks.critic_batch_norm=true", "add model.networks.critic_batch_norm=false"),
        (["trainer.patience=1"], "trainer.patience=0", "at least 1"),
        (["trainer.monitor=validation/excess_bce"], "trainer.monitor=validation/kl", "validation/excess_bce"),
        (["trainer.patience=1", "trainer.max_epochs=4", "trainer.validate_every_n_epochs=4"],
         "trainer.validate_every_n_epochs=5", "allows none"),
    ],
)  # fmt: skip
def test_schedules_and_limits_fit_together(settings: list[str], refused: str, message: str) -> None:
    validate(of_model("adversarial_vae", *settings))
    with pytest.raises(UserError) as error:
        validate(of_model("adversarial_vae", *settings, refused))
    assert refused.partition("=")[0] in str(error.value)
    assert message in str(error.value)


def test_a_rate_that_ends_early_is_told() -> None:
    fields = [
        f"model.{p}_optimizer.{f}" for p in ("autoencoder", "critic") for f in ("schedule=linear", "schedule_batches=9")
    ]
    model = typed(of_model("adversarial_vae", *fields), Config).model
    assert [sentence[:39] for sentence in idle_players(model, 10)] == [
        "The autoencoder stops learning at batch",
        "The critic stops learning at batch 9 of",
    ]
    assert idle_players(model, 9) == []
    plain_vae = typed(of_model("vae", *fields[:2]), Config).model
    assert len(idle_players(plain_vae, 10)) == 1


@pytest.mark.parametrize("learned", ["true", "false"])
def test_the_critic_needs_fakes(learned: str) -> None:
    names = ("fake_reconstruction", "fake_mix")
    none = [f"model.weights.{name}=0" for name in names]
    settings = [f"model.learned_mixing={learned}", "model.weights.fake_target=1"]
    with pytest.raises(UserError, match=r"fake_reconstruction and fake_mix are both 0"):
        validate(of_model("pegasus", *settings, *none))
    for name in names:
        validate(of_model("pegasus", *settings, *none, f"model.weights.{name}=0.1"))


def test_a_folder_of_images_has_to_be_named() -> None:
    with pytest.raises(UserError, match=r"data\.root=FOLDER"):
        validate(TRAIN.compose(["data=image_folder"]))


def test_the_name_of_the_model_is_the_registry_s(configured: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"model\.name"):
        validate(configured("model.name=subprocess"))


def test_the_learning_rate_is_finite(configured: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match="lr"):
        validate(configured("model.autoencoder_optimizer.lr=inf"))


def test_the_source_fits_the_data_preset(configured: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"data\.source"):
        validate(configured("data.source=cifar10"))


def test_validate_leaves_no_trace(
    configured: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    validate(configured())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("12h", 43200), ("2d", 172800), ("45", 45), ("1.5h", 5400), (" 3m ", 180)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "3 hours", "-1s", "1e3", "1:30", "2w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match=r"20m"):
        parse_duration(text)


def test_plain_is_plain_all_the_way_down(configured: Callable[..., DictConfig]) -> None:
    def types(node: Any) -> set[type]:
        children = node.values() if type(node) is dict else node if type(node) is list else ()
        return {type(node)}.union(*(types(child) for child in children))

    assert types(plain(configured())) <= {dict, list, str, int, float, bool, type(None)}
    with pytest.raises(MissingMandatoryValue):
        plain(TRAIN.compose(["data=image_folder"]))
