"""NVIDIA GPUs and their driver."""
from doctor_checks.compatibility import base
from doctor_checks.machine import ABSENT, FULL, OK, WARNING, WRONG, Row, brief

QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader,nounits")


def row(machine):
    """Return the row of the GPUs: driver, which are visible, memory, what PyTorch sees."""
    status, text = machine.run(*QUERY)
    wanted = machine.device == "gpu"
    fault = WRONG if wanted else WARNING  # a GPU that is only there may stay unused
    if status is None and not machine.glob("/dev/nvidia[0-9]*"):
        return Row(WRONG if wanted else ABSENT, "GPU", "no nvidia-smi and no /dev/nvidia* here",
                   "a machine with GPUs, a container with them (docker run --gpus all), or --device=cpu" if wanted else "")
    if status != 0:
        return Row(fault, "GPU", "nvidia-smi: " + brief(text or "not there"),
                   "install the NVIDIA driver and restart; in a container docker run --gpus all")
    gpus = [line.split(", ") for line in text.strip().splitlines()]
    torch, value = machine.probe("torch"), machine.environ.get("CUDA_VISIBLE_DEVICES")
    odd = [word for word in (value or "0").split(",") if word.strip().isdigit() and int(word) >= len(gpus)]
    if value in ("", "-1") or odd:
        why = "there is no GPU " + odd[0] if odd else "no GPU is visible"
        return Row(fault, "GPU", "CUDA_VISIBLE_DEVICES=%s: %s" % (value, why),
                   "numbers from 0 to %d and commas; or unset it" % (len(gpus) - 1))
    if "count" in torch and not torch["cuda"]:
        return Row(fault, "GPU", "PyTorch %s is a build without CUDA" % torch["version"],
                   "pip install torch==%s of https://download.pytorch.org/whl/ and a CUDA" % base(torch["version"]))
    if torch.get("count") == 0:
        why = [text for text in torch["warnings"] if "CUDA" in text or "driver" in text] or ["it does not say why"]
        return Row(fault, "GPU", "PyTorch sees none: " + brief(why[0]),
                   "a driver newer than %s, or a PyTorch for a CUDA older than %s" % (gpus[0][1], torch["cuda"]))
    for number, (_, _, used, total) in enumerate(gpus):
        if int(used) > FULL * int(total):
            return Row(WARNING, "GPU", "GPU %d has %s of %s MiB in use" % (number, used, total),
                       "end the processes that nvidia-smi lists, or take other GPUs")
    return Row(OK, "GPU", "%d of %d visible, %s, %s MiB, driver %s" % (
        torch.get("count", len(gpus)), len(gpus), gpus[0][0], gpus[0][3], gpus[0][1]))
