"""Export ONNX of any model here: input actual_input_1 (N, 3, size, size), output output1 (N, classes), logits.

Opset 11 by the older exporter, as Ascend's offline compiler (ATC) wants it, any number of pictures. --exporter=dynamo takes the
newer one (PyTorch 2.5 and later with onnxscript), and its opset. Beside the file goes FILE.aippconfig, with which the compiled
model takes pictures in bytes, RGB, and normalises them itself; the command that compiles is printed. Where onnxruntime is
installed, the file's logits are compared with PyTorch's, and with --data-path the accuracies.

Example: weights.py onnx test/output/0/model_best.pth.tar --out=resnet50.onnx
"""
import copy
import importlib
import inspect
import os
import warnings

import torch
from tqdm import tqdm

from common import cli
from weights import _files, _networks

INPUT, OUTPUT = "actual_input_1", "output1"
LARGEST = 2 ** 31  # bytes that a protobuf message can have
TOLERANCE = 1e-3  # of the largest logit
ROUNDINGS = 100  # a network that has hardly been trained may enlarge roundings beyond that: so many times PyTorch's own pass
_BATCH = 16


def add_flags(parser):
    """Add the verb's flags to its parser."""
    _files.add_flags(parser, "export")
    add = parser.add_argument
    add("--out", metavar="FILE", required=True, help="the file to write")
    add("--image-size", type=cli.positive_int, help="pixels of a side; the recipe's without it")
    add("--batch-size", type=cli.natural_int, default=0, help="fixed number of pictures (default: 0, any)")
    add("--exporter", choices=("legacy", "dynamo"), default="legacy", help="PyTorch's older or newer one (default: %(default)s)")
    add("--opset", type=cli.positive_int, help="ONNX's operator set (default: 11; of dynamo, PyTorch's own)")
    add("--data-path", metavar="DIR", help="a data set, on whose validation pictures the accuracy is compared with PyTorch's")


def run(args):
    """Write the file and its .aippconfig; raise TrainingStopped where its logits are not PyTorch's."""
    weights = _files.read(args)
    view = _files.view_of(weights, args.image_size)
    model = _files.module(weights)
    if sum(value.numel() * value.element_size() for value in weights.state.values()) > LARGEST:
        raise cli.UserError("%s has more than 2 GiB of weights, which one ONNX file cannot hold" % weights.network.name)
    pictures = _validation_pictures(weights.network, view, args) if args.data_path else None
    images = torch.zeros(args.batch_size or 2, 3, view.size, view.size)
    aipp = os.path.splitext(args.out)[0] + ".aippconfig"
    with _files.new_file(args.out) as part:
        _export(model, images, part, args)
        _compare_logits(model, torch.rand(images.shape), part, args.out)
    with _files.new_file(aipp) as part, open(part, "w") as stream:
        stream.write(aipp_of(view))
    cli.print_line("wrote %s: %s, %s pictures of %d x %d; %s: bytes, RGB, normalised by the compiled model"
                   % (args.out, weights.network.name, args.batch_size or "any number of", view.size, view.size, aipp))
    cli.print_line("to compile: " + atc_command(args.out, args.batch_size or _BATCH, view.size))
    if pictures:
        _compare_accuracy(model, pictures, view, args)


def _validation_pictures(network, view, args):
    """Return validation_pictures, of whole batches where their size is fixed. Raises UserError where the accuracies cannot be compared."""
    if _installed("onnxruntime") is None:
        raise cli.UserError("--data-path takes onnxruntime: pip install onnxruntime")
    count, picture = _networks.validation_pictures(network, view, args.data_path)
    whole = count - count % (args.batch_size or 1)
    if not whole:
        raise cli.UserError("--batch-size=%d: %s has only %d validation pictures" % (args.batch_size, args.data_path, count))
    return whole, picture


def _export(model, images, path, args):
    options = {"input_names": [INPUT], "output_names": [OUTPUT]}
    has_both = "dynamo" in inspect.signature(torch.onnx.export).parameters
    if args.exporter == "dynamo":
        if not has_both or not _installed("onnxscript"):
            raise cli.UserError("--exporter=dynamo takes PyTorch 2.5 or later and onnxscript: pip install onnxscript")
        options.update(dynamo=True, verbose=False)
        for name, value in (("external_data", False), ("optimize", True)):
            if name in inspect.signature(torch.onnx.export).parameters:
                options[name] = value
        if not args.batch_size:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        if has_both:
            options["dynamo"] = False
        if not args.batch_size:
            options["dynamic_axes"] = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    if args.opset or args.exporter == "legacy":
        options["opset_version"] = args.opset or 11
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the exporter's age, and on sizes that are the same for every picture
        try:
            torch.onnx.export(model, (images,), path, **options)
        except Exception as error:  # each version of PyTorch has an error of its own
            if "onnx is not installed" in str(error):
                raise cli.UserError("this PyTorch exports with the package onnx: pip install onnx")
            raise


def _installed(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _session(path):
    """Return f(float tensor) -> logits of an ONNX file, None where onnxruntime is not installed."""
    runtime = _installed("onnxruntime")
    if runtime is None:
        return None
    with open(path, "rb") as file:
        session = runtime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _compare_logits(model, images, part, path):
    session = _session(part)
    if session is None:
        return cli.print_line("not compared with PyTorch: onnxruntime is not installed")
    with torch.no_grad():
        wanted, exact = model(images), copy.deepcopy(model).double()(images.double())
    difference, rounding = (float((each - wanted).abs().max() / wanted.abs().max()) for each in (session(images), exact))
    if not difference < max(TOLERANCE, ROUNDINGS * rounding):
        raise cli.TrainingStopped("%s was not written: its logits differ from PyTorch's by %g of the largest" % (path, difference))
    cli.print_line("ONNX Runtime's logits differ from PyTorch's by at most %.1e of the largest" % difference)


def _compare_accuracy(model, pictures, view, args):
    (count, picture), session = pictures, _session(args.out)
    size, right = args.batch_size or _BATCH, [0, 0]
    with tqdm(total=count, desc="evaluating", unit="picture", disable=None) as bar, torch.no_grad():
        for start in range(0, count, size):
            pixels, targets = zip(*map(picture, range(start, min(start + size, count))))
            images, targets = _networks.normalised(pixels, view), torch.tensor(targets)
            for place, answer in enumerate((session(images), model(images))):
                right[place] += int((answer.argmax(1) == targets).sum())
            bar.update(len(targets))
    cli.print_line("top-1 on %d pictures: ONNX %.3f %%, PyTorch %.3f %%" % ((count,) + tuple(100.0 * each / count for each in right)))


# --- Ascend's offline compiler ----------------------------------------------------------------------------------------

def aipp_of(view):
    """Return the settings of the compiler's own preprocessing, which makes of RGB bytes what the network was trained on: channels
    swapped first, then (pixel - min_chn) * var_reci_chn."""
    lines = ["aipp_mode: static", "input_format: RGB888_U8", "src_image_size_w: %d" % view.size, "src_image_size_h: %d" % view.size,
             "crop: false", "csc_switch: false", "rbuv_swap_switch: %s" % ("true" if view.channels == "BGR" else "false")]
    for channel, (mean, std) in enumerate(zip(view.mean, view.std)):
        lines += ["min_chn_%d: %.10g" % (channel, 255 * mean), "var_reci_chn_%d: %.10g" % (channel, 1 / (255 * std))]
    return "aipp_op {\n%s}\n" % "".join("    %s\n" % line for line in lines)


def atc_command(path, batch, size):
    """Return the command that compiles an ONNX file and its .aippconfig for an NPU."""
    base = os.path.splitext(path)[0]
    return ('atc --framework=5 --model=%s --output=%s_bs%d --input_format=NCHW --input_shape="%s:%d,3,%d,%d" '
            "--insert_op_conf=%s.aippconfig --enable_small_channel=1 --soc_version=$SOC_VERSION"
            % (path, base, batch, INPUT, batch, size, size, base))
