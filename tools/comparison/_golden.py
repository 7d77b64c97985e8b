"""Upstream's golden values (ci/golden) as trainings that each model's own program can repeat: its words, weights, images, rates.

What a recipe is stays in the programs, in test/model.sh and in the configurations; here stands only which of them belong to which
entry of the golden file.
"""
import json
import os
import runpy
import signal
import subprocess
import sys
from collections import namedtuple

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CI = os.path.join(ROOT, "ci")
HRNET = os.path.join(ROOT, "HRNet", "experiments", "cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml")
sys.path[:0] = [path for path in (CI,) if path not in sys.path]
import fill  # noqa: E402 (ci/fill.py, which the golden values were made with)

MODELS = ("ResNet50", "HRNet", "GENet", "EfficientNet-B3", "FixRes")

# A training of the golden file. name: of upstream's recipe; words: the program and its arguments; weights: how the filled weights
# are changed before it; batch, side, classes, seeds (of images, of labels; the step is added): its pictures; rate: of epoch 0;
# losses: of its steps, norms: {"parameters": l2, "statistics": l2} after them (None where they are not recorded), exact: whether both
# come from float64; tolerance: the golden file's, relative; steady: whether rounding stays small, so that a device can be compared (the
# golden files call the others chaotic in float32; their float64 runs prove the recipe, and another start of it is steady).
Recipe = namedtuple("Recipe", "model name words weights batch side classes seeds rate losses norms exact tolerance steady")
# Logits of the golden file: the images, in which mode (eval, or train), the first values and the l2 norm of each row, exact as above.
Logits = namedtuple("Logits", "batch height width seed train first norms exact")


def golden(model):
    """Return the golden file of a model."""
    with open(os.path.join(CI, "golden", model + ".json"), encoding="utf-8") as stream:
        return json.load(stream)


def recipes(model):
    """Return the Recipes of a model, those of the test scripts for one device first."""
    return {"ResNet50": _resnet, "HRNet": _hrnet, "GENet": _genet, "EfficientNet-B3": _efficientnet, "FixRes": _fixres}[model](
        golden(model))


def start_weights(recipe, state):
    """Return the weights that the recipe starts from: filled, and changed as the golden file's note says."""
    filled = fill.fill_state_dict(state)
    for name in filled:
        if name in recipe.weights.get("zero", ()):
            filled[name] = torch.zeros_like(filled[name])
        if recipe.weights.get("tame") and name.endswith("bn3.weight"):
            filled[name] = filled[name] * 0.1
    return filled


def batch(recipe, step):
    """Return (images (N, 3, side, side) float32, labels (N,)) of a step."""
    images, labels = recipe.seeds
    return (fill.make_input(recipe.batch, recipe.side, recipe.side, seed=images + step),
            fill.make_target(recipe.batch, recipe.classes, seed=labels + step))


def _variant(recipe):
    """Return the golden file's entry of the recipe's network."""
    variants = golden(recipe.model)["variants"]
    return next((variant for variant in variants if variant["arch"] == recipe.name), variants[0])


def state_keys(recipe):
    """Return [[key, shape, type]] of upstream's state dict."""
    return _variant(recipe)["state_dict"]


def logits(recipe):
    """Return the Logits of the recipe's network."""
    model, variant = recipe.model, _variant(recipe)
    if model == "FixRes":
        entry = variant["eval"][0]
        spec, rows, norms = entry["eval_input"], entry["eval_logits"]["first_16"], entry["eval_logits"]["row_l2"]
    elif model == "EfficientNet-B3":
        entry = variant["calibrated"]
        rows = [row["logits"] for row in entry["train_mode_logits_float64"]]
        norms = [row["l2"] for row in entry["train_mode_logits_float64"]]
        spec = entry["calibration_input"]
    elif model == "GENet":
        spec, rows = variant["eval_input"], variant["eval_logits_float64"]
        norms = [sum(value ** 2 for value in row) ** 0.5 for row in rows]
    else:
        entry, spec = variant["eval_logits"], variant["eval_input"]
        rows, norms = entry.get("first16") or entry["first"], entry.get("l2") or entry["row_l2"]
    return Logits(spec["batch"], spec["height"], spec["width"], spec["seed"], model == "EfficientNet-B3", rows, norms,
                  model in ("GENet", "EfficientNet-B3"))


def schedules(model):
    """Return [(name, f(epoch) -> rate, [(epoch, upstream's rate)])]: the model's own functions and the golden table."""
    from weights import _networks
    _networks._reach(model)
    return {"ResNet50": _resnet_schedules, "HRNet": _hrnet_schedules, "GENet": _genet_schedules,
            "EfficientNet-B3": _efficientnet_schedules, "FixRes": _fixres_schedules}[model](golden(model))


def _resnet_schedules(content):
    import recipe

    def of(entry):
        return lambda epoch: recipe.learning_rate(epoch, entry["schedule"], entry["base_lr"], entry["warmup"], entry["epochs"])
    return [(entry["name"], of(entry), entry["epoch_lr"]) for entry in content["lr_schedule"]]


def _hrnet_schedules(content):
    from lib.config import new_config
    from lib.core import optimizer
    config = new_config()
    config.merge_from_file(HRNET)
    return [(name, lambda epoch, base=points[0][1]: optimizer.learning_rate(config, base, epoch), points)
            for name, points in content["lr_schedule"].items()]


def _genet_schedules(content):
    program = runpy.run_path(os.path.join(ROOT, "GENet", "train.py"))
    entries = [(name, entry) for name, entry in content["lr_schedule"].items() if isinstance(entry, dict)]
    return [(name, lambda epoch, entry=entry: program["learning_rate"](epoch, entry["learning_rate"], entry["lr_decay_ratio"],
                                                                       entry["epoch_step"]), entry["points"]) for name, entry in entries]


def _efficientnet_schedules(content):
    from pycls.core import config, optimizer

    def of(keys):
        def rate(epoch):
            config.reset_cfg()
            config.cfg.merge_from_list([word for pair in keys.items() for word in pair])
            return optimizer.get_epoch_lr(epoch)
        return rate
    entries = content["components"]["lr_policies"] + content["variants"][0]["lr_schedule"]
    return [(entry["recipe"], of(entry["keys"]), entry["points"]) for entry in entries]


def _fixres_schedules(content):
    from imnet_common import schedule

    def of(case):
        base = schedule.base_learning_rate(case["flag"], case["batch"], case["tasks"], case["scaled"])
        return lambda epoch: schedule.learning_rate(base, epoch)
    return [(case["recipe"], of(case), case["epoch_lr"]) for case in content["lr_schedule"]]


# --- each model -------------------------------------------------------------------------------------------------------

def _of_script(model, array):
    """Return the words that a model's test scripts keep in an array of test/model.sh. (Where SIGINT is ignored, as in a background job of
    a script, what test/model.sh sources would start the script anew, and here there is none.)"""
    command = 'source "$1"; declare -n words=$2; printf "%s\\n" "${words[@]}"'
    path = os.path.join(ROOT, model, "test", "model.sh")
    return subprocess.run(["bash", "-c", command, "bash", path, array], stdout=subprocess.PIPE, check=True, universal_newlines=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)).stdout.split("\n")[:-1]


def _norms(parameters, statistics):
    return {"parameters": parameters, "statistics": statistics}


def _resnet(content):
    variant = content["variants"][0]
    setup = variant["train_setup"]
    scripts = {"1p": ["--lr=0.2"] + _of_script("ResNet50", "one_card"), "8p": ["--lr=1.6"] + _of_script("ResNet50", "eight_cards"),
               "upstream": ["--lr=0.1"]}

    def recipe(name, kind):
        of_recipe = variant["train_losses"][name]
        found = of_recipe[kind]
        words = ["ResNet50/main.py", "--image-size=%d" % setup["height"], "--batch-size=%d" % setup["batch"], "--epochs=90"]
        exact = kind == "filled_float64"
        return Recipe("ResNet50", name + (", plain weights" if exact else ""), words + scripts[name],
                      {} if exact else {"zero": variant["zeroed_gammas"]}, setup["batch"], setup["height"], setup["classes"],
                      (setup["input_seed0"], setup["target_seed0"]), of_recipe["lr_value"], found["losses"],
                      _norms(found["param_l2"], found["buffer_l2"]), exact, 1e-6 if exact else found["rtol"], not exact)
    return [recipe(name, kind) for kind in ("filled_zero_gamma_float32", "filled_float64") for name in ("1p", "8p", "upstream")]


def _hrnet(content):
    variant = content["variants"][0]
    spec, small = variant["train_input"], variant["train_float32_small_lr"]

    def recipe(name, rate, losses, norms, exact):
        words = ["HRNet/tools/train.py", "--cfg=" + HRNET, "--bs=%d" % spec["batch"], "--lr=%g" % rate, "MODEL.IMAGE_SIZE",
                 "[%d,%d]" % (spec["width"], spec["height"]), "LOG_DIR", ""]
        return Recipe("HRNet", name, words, {}, spec["batch"], spec["height"], spec["classes"], (100, 200), rate, losses, norms, exact,
                      1e-6 if exact else 1e-2, True)
    return [recipe("upstream", variant["train_optimizer"]["lr"], variant["train_losses"],
                   _norms(variant["train_final_param_l2"], variant["train_final_buffer_l2"]), True),
            recipe("upstream with a small rate", small["optimizer"]["lr"], small["losses"],
                   _norms(small["final_param_l2"], small["final_buffer_l2"]), False)]


def _genet(content):
    found = []
    for variant in content["variants"]:
        spec, options, after = variant["train_input"], variant["options"], variant["train_after_float64"]
        words = ["GENet/train.py", "--batch-size=%d" % spec["batch"], "--amp", "--depth=%d" % options["depth"],
                 "--width=%d" % options["width"], "--extent=%d" % options["extent"], "--extra-params=%s" % options["extra_params"],
                 "--mlp=%s" % options["mlp"]]
        statistics = (after["running_mean_l2"] ** 2 + after["running_var_l2"] ** 2) ** 0.5
        found.append(Recipe("GENet", variant["arch"], words, {}, spec["batch"], spec["height"], variant["num_classes"],
                            (spec["input_seed_base"], spec["target_seed_base"]), content["optimizer"]["lr"],
                            variant["train_losses_float64"], _norms(after["parameters_l2"], statistics), True, 1e-8, True))
    return found


def _efficientnet(content):
    spec = content["variants"][0]["train_losses"]
    configs = {"upstream 8 cards, batch 256": "8gpu", "NPU 1p, batch 128": "1npu_full", "NPU 8p, batch 512": "8npu_full",
               "gentle, for float32 comparison": "1npu_full"}
    found = []
    for run in sorted(spec["runs"], key=lambda run: not run["recipe"].startswith("NPU 1p")):
        config = os.path.join(ROOT, "EfficientNet-B3/configs/dds_baselines/effnet/EN-B3_dds_%s.yaml" % configs[run["recipe"]])
        words = ["EfficientNet-B3/tools/train_net.py", "--cfg=" + config, "TRAIN.BATCH_SIZE", str(spec["batch"]), "NUM_GPUS", "1",
                 "TRAIN.IM_SIZE", str(spec["height"]), "PREC_TIME.NUM_ITER", "0", "LOG_DEST", "file", "TRAIN.LOSS_SCALE", "128.0"]
        words += ["OPTIM.BASE_LR", str(run["lr"])] if run["recipe"].startswith("gentle") else []
        exact = run["train_losses_float64"]
        found.append(Recipe("EfficientNet-B3", run["recipe"], words, {}, spec["batch"], spec["height"], spec["classes"], (100, 200),
                            run["lr"], exact["losses"], _norms(exact["param_l2"], exact["running_stats_l2"]), True, 1e-6, True))
    return found


def _fixres(content):
    found = []
    for entry in content["variants"][0]["train"]:
        setting, result = entry["setting"], entry["result"]
        if setting.get("unsteady") or setting.get("override_lr"):
            continue
        program = {"scratch": "main_resnet50_scratch.py", "finetune": "main_finetune.py"}[setting["phase"]]
        # The program's rate grows with its global batch, here that of the golden run's pictures.
        rate = result["learning_rate"] * 64 / setting["batch"]
        words = ["FixRes/" + program, "--input-size=%d" % setting["height"], "--batch=%d" % setting["batch"], "--num-tasks=1",
                 "--learning-rate=%r" % rate]
        name = "%s, %d card%s%s" % (setting["phase"], setting["num_tasks"], "s" * (setting["num_tasks"] > 1), "".join(
            ", " + word for word in ("tame", "calibrate") if setting.get(word)))
        exact = setting["dtype"] == "float64"
        found.append(Recipe("FixRes", name, words, {key: setting.get(key) for key in ("tame", "calibrate")}, setting["batch"],
                            setting["height"], 1000, (setting["input_seed"], setting["target_seed"]), result["learning_rate"],
                            result["train_losses"], {"parameters": result["param_l2_after"]}, exact, 1e-6 if exact else 1e-3,
                            setting["phase"] == "finetune" or bool(setting.get("tame"))))
    return sorted(found, key=lambda recipe: (not recipe.weights["tame"], recipe.name))
