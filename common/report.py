"""The result of a run, read from its records: the block on stdout, <CaseName>.log and report.json.

A training script hands over by its last record, the summary with step (): `train.total_ips`, `train.loss` (of the last
step), `val.top1` (last evaluation), `val.best_top1`, `val.loss`, and whatever else is worth a line in report.json. A key that
is absent or None was not measured, and is reported as such.
"""
import json
import os
import platform

from common import outputs, records

NOT_MEASURED = "not measured"


def summary(path):
    """Return (parameters, summary) of the newest run in a record file; the summary is None when it did not reach its end."""
    parameters, last = {}, None
    for record in records.read(path):
        if record.get("step") == "PARAMETER":
            parameters, last = record.get("data", {}), None
        elif record.get("type") == "LOG" and record.get("step") == []:
            last = record.get("data", {})
    if last and parameters.get("dummy"):  # there is no accuracy on images that are made up
        last = {name: value for name, value in last.items() if not name.startswith("val.")}
    return parameters, last


def files(case, output_path):
    """Return the paths of what `write` writes."""
    return [os.path.join(output_path, name) for name in (_name(case) + ".log", "report.json")]


def _name(case):
    return "{network}_bs{batch_size}_{ranks}p_{suffix}".format(**case)


def write(case, metrics_path, output_path, seconds):
    """Write the three forms of the report and return the block's lines. Raises TrainingStopped where a file cannot be written.

    `case`: dictionary with network, batch_size (as the model's scripts count it), images_per_step (of all ranks), ranks, suffix (acc,
    perf, eval), kind (train, finetune, eval).
    """
    parameters, measured = summary(metrics_path)
    name, (log_path, report_path) = _name(case), files(case, output_path)
    lines, block = _lines(case, name, measured, seconds)
    typed = {"case": dict(case, name=name), "duration_sec": round(seconds, 3), "summary": measured, "parameters": parameters,
             "host": {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}}
    typed["reference"] = compared(typed)
    with outputs.writing(report_path), open(log_path, "w") as log, open(report_path, "w") as stream:
        log.write("".join("%s = %s\n" % line for line in lines))
        stream.write(json.dumps(typed, indent=2, sort_keys=True) + "\n")
    return block


def compared(report):
    """Return what references.json has on the case of a report.json: the published `top1`, its `band` with the `reason`, the `published`
    row of as many devices of the kind (or None), and the `verdict` on the run's accuracy. None where it has nothing."""
    case, parameters, measured = (report.get(name) or {} for name in ("case", "parameters", "summary"))
    with open(os.path.join(os.path.dirname(__file__), "references.json")) as stream:
        known = [entry for entry in json.load(stream) if case["network"] in entry["networks"] and case["kind"] == entry["kind"]]
    if not known:
        return None
    here = parameters.get("device_type"), case["ranks"]
    published = [row for row in known[0]["published"] if (row["device"], row["ranks"]) == here]
    return dict({name: known[0][name] for name in ("top1", "band", "reason")}, published=published[0] if published else None,
                verdict=_verdict(known[0], parameters, measured))


def _verdict(entry, parameters, measured):
    settings = parameters.get("opts") or []  # KEY VALUE ..., of the models with configurations
    run = dict(parameters, epochs=measured.get("epochs"), **dict(zip(settings[::2], settings[1::2])))
    for name, wanted in entry["recipe"].items():
        if run.get(name) != wanted:
            return "not comparable: %s is %s, the reference's %s" % tuple(
                "not given" if each is None else each for each in (name, run.get(name), wanted))
    (low, high), top1 = entry["band"], measured.get("val.top1")
    if top1 is None:
        return NOT_MEASURED
    return "within the band" if low <= top1 <= high else "below the band" if top1 < low else "above the band"


def _lines(case, name, measured, seconds):
    """Return the lines of <CaseName>.log as pairs, and those of the block. Dashboards read the names of both."""
    what, doing = ("Finetune", "Finetuning") if case["kind"] == "finetune" else ("Train", "Training")
    is_eval, rate = case["kind"] == "eval", measured.get("train.total_ips")
    speed, top1, best = (_number(measured.get(key), "%.3f") for key in ("train.total_ips", "val.top1", "val.best_top1"))
    log = [("Network", case["network"]), ("RankSize", case["ranks"]), ("BatchSize", case["batch_size"]),
           ("DeviceType", platform.machine()), ("CaseName", name)]
    block = ["------------------ Final result ------------------"]
    if not is_eval:
        log += [("ActualFPS", speed), (doing + "Time", _number(case["images_per_step"] * 1000.0 / rate if rate else None, "%.2f"))]
        block.append("Final Performance images/sec : " + speed)
    log += [(what + "Accuracy", top1), ("ActualLoss", _number(measured.get("val.loss" if is_eval else "train.loss"), "%.5f"))]
    block.append("Final %s Accuracy : %s" % (what, top1))
    if not is_eval:
        block.append("Best %s Accuracy : %s" % (what, best))
    return log + [("E2E%sTime" % doing, "%d" % seconds)], block + ["E2E %s Duration sec : %d" % (doing, seconds)]


def _number(value, form):
    return form % value if isinstance(value, (int, float)) else NOT_MEASURED
