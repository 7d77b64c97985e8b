"""Export a checkpoint as ONNX: input actual_input_1 (N, 3, size, size), output output1 (N, classes).

    python pth2onnx.py model_best.pth.tar resnet50_official.onnx
"""
import inspect
import os
import sys
import warnings

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), *up) for up in ((), (os.pardir,))]
from common import checkpoint, cli  # noqa: E402
import resnet  # noqa: E402
import torch  # noqa: E402 (after common, which says what this Python lacks)


def main():
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", help="weights in any layout that main.py reads")
    parser.add_argument("onnx", nargs="?", default="resnet50_official.onnx", help="the file to write")
    parser.add_argument("-a", "--arch", choices=[name for name in dir(resnet) if name.startswith("resnet")], default="resnet50")
    parser.add_argument("--num-classes", type=cli.positive_int, default=1000)
    parser.add_argument("--image-size", type=cli.positive_int, default=224)
    parser.add_argument("--batch-size", type=cli.natural_int, default=0, help="fixed batch size; 0: any")
    parser.add_argument("--opset", type=cli.positive_int, default=11)
    args = parser.parse_args()

    model = getattr(resnet, args.arch)(args.num_classes)
    checkpoint.load_weights(model, checkpoint.load(args.checkpoint), args.checkpoint)
    options = {} if args.batch_size else {"dynamic_axes": {"actual_input_1": {0: "batch"}, "output1": {0: "batch"}}}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the newer exporter has no opset 11, which the offline converter wants
    images = torch.zeros(args.batch_size or 1, 3, args.image_size, args.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model.eval(), images, args.onnx + ".part", opset_version=args.opset, input_names=["actual_input_1"],
                          output_names=["output1"], **options)
    os.replace(args.onnx + ".part", args.onnx)
    batch = args.batch_size or "any number of"
    print("wrote %s: %s, %s images of %d x %d" % (args.onnx, args.arch, batch, args.image_size, args.image_size))


if __name__ == "__main__":
    cli.run(main)
