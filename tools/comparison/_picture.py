"""Error and bound by layer, as a picture."""
PHASES = ("forward", "backward", "gradient of weight", "update of weight")


def write(path, rows_of, title):
    """Write a PNG: a panel for each phase of the first step, over the layers in the order of the forward pass; dots for each of
    `rows_of`, {name of a level: Rows}, and a line for its bound. What is exact (a ReLU) is left out. Does nothing where matplotlib is
    not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(PHASES), 1, figsize=(12, 3 * len(PHASES)))
    for axis, phase in zip(axes, PHASES):
        for number, (name, rows) in enumerate(rows_of.items()):
            drawn = [row for row in rows if row.phase == phase and row.step == 0 and row.error > 0]
            places, colour = range(len(drawn)), "C%d" % number
            axis.semilogy(places, [row.error for row in drawn], colour + ".", ms=3, label=name)
            axis.semilogy(places, [row.bound for row in drawn], colour, lw=0.7)
        axis.set_ylabel(phase)
        axis.grid(alpha=0.3)
    axes[0].set_title(title + ": relative error of each layer against float64; lines: bounds")
    axes[0].legend()
    axes[-1].set_xlabel("layers in the order of the forward pass")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
