"""Test that models survive a file, and that older formats are migrated."""

import json

import pytest
import torch
from lssvwm.worldmodel import migration, tensor_file
from lssvwm.worldmodel.migration import migrate_config, migrate_weights
from safetensors.torch import load_file, save_file

from lssvwm import worldmodel


def test_saved_model_is_the_same(tmp_path, tiny, sequences):
    model = tiny(torch.float32)
    worldmodel.save(model, tmp_path)
    again = worldmodel.load(tmp_path)
    a, _ = model.observe(model.initial(2), *sequences())
    b, _ = again.observe(again.initial(2), *sequences())
    assert a.diff(b).max() == 0 and again.config == model.config


def test_load_reports_damage_and_missing_files(tmp_path, tiny):
    file = worldmodel.save(tiny(torch.float32), tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        worldmodel.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model"):
        worldmodel.load(tmp_path / "nowhere")


def test_load_refuses_a_newer_format(tmp_path, tiny):
    file = worldmodel.save(tiny(torch.float32), tmp_path)
    header = {"format_version": 5, "config": {}}
    save_file(load_file(file), file, {tensor_file.HEADER: json.dumps(header)})
    with pytest.raises(ValueError, match=r"has format 5, this version reads .* to 4"):
        worldmodel.load(tmp_path)


def test_migrate_weights_renames_format1_keys():
    old = ("place", "act.weight", "level.0.bias", "blocks.1.scan.A_log", "reach.scale")
    new = (
        "embedding.pos_embed",
        "embedding.action_embed.weight",
        "embedding.noise_embed.0.bias",
        "blocks.1.mixer.A_log",
        "action_limits.scale",
    )
    weight = torch.zeros(())
    assert tuple(migrate_weights(dict.fromkeys(old, weight), {}, 1)) == new
    assert migrate_weights({"place": weight}, {}, 2) == {"place": weight}


FORMAT1 = {"patch": 8, "imagined": 0.3, "flow": 0.125, "loss": {"cont": 1.0}}


def test_migrate_config_renames_and_regroups_settings():
    found = migrate_config(FORMAT1 | {"tiles": [2], "rotary": 0.5}, 1)
    assert found["self_forcing_prob"] == 0.3 and found["loss"] == {}
    assert found["mixer"]["kind"] == "tiled_ssd" and found["mixer"]["tiles"] == [2]
    assert found["mixer"]["rope_fraction"] == 0.5 and "flow" not in found
    assert migrate_config(found, 2) == found


def test_migrate_config_splits_the_window():
    baseline = FORMAT1 | {"kind": "attention", "tiles": [1, 1], "window": 16}
    found = migrate_config(baseline, 1)
    assert found["mixer"]["window"] == 16 and found["mixer"]["layers"] == 2
    assert found["attention_window"] == 0
    assert migrate_config(FORMAT1 | {"window": 2}, 1)["attention_window"] == 2


@pytest.mark.parametrize(
    ("prefix", "forcing"),
    [({}, "diffusion_prefix"), ({"clean_prefix": 0}, "diffusion")],
)
def test_migrate_config_names_the_clean_prefix(prefix, forcing):
    found = migrate_config(FORMAT1 | {"forcing": "diffusion"} | prefix, 1)
    assert found["forcing"] == forcing and "clean_prefix" not in found


def test_migrate_config_refuses_sizes_that_are_gone():
    with pytest.raises(ValueError, match=r"model\.head_hidden=32 is no longer"):
        migrate_config(FORMAT1 | {"head_hidden": 32}, 1)


def test_tables_name_every_format1_setting():
    old = {*migration.RENAMED_SETTINGS, *migration.REMOVED_SETTINGS}
    kept = {"patch", "width", "attention_heads", "forcing", "context_noise"}
    kept |= {"event_weight", "discount", "loss"}
    assert not old & kept
    assert {"standardise", "mlp", "window", "flow", "loss.reach"} <= old
