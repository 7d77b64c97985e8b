"""What a data-parallel step takes on any number of devices: compute that grows with the batch, and all-reduces by the alpha-beta model
(Thakur, Rabenseifner, Gropp 2005: so long a hop, so many bytes a second), of which what backward does not hide is waited for.

Backward is taken for two thirds of compute; a bucket of gradients is ready when as much of backward is done as gradients are.
"""
import math
from collections import namedtuple

# Devices of a machine; bytes/s that a ring moves between machines (all adapters of one machine together) and inside of one; seconds of
# a hop between machines and inside of one.
Network = namedtuple("Network", "per_machine bandwidth inner_bandwidth latency inner_latency")

# Of a device: seconds of a step's compute for no image, and for each image more; bytes of each bucket of gradients, in the order in which
# they are sent; whether they are sent during backward.
Work = namedtuple("Work", "fixed per_image buckets overlaps")

BACKWARD = 2 / 3  # of a step's compute
BOUND = 0.05  # a step that waits for so much of its time for communication is bound by it
MIB = 2 ** 20


def buckets_of(sizes):
    """Return the bytes of the buckets that DistributedDataParallel makes of gradients of so many bytes, listed in the network's order:
    from the last one on, 1 MiB for the first bucket and 25 MiB for the others, closed by the gradient that reaches it."""
    closed, open_ = [], 0
    for size in reversed(sizes):
        open_ += size
        if open_ >= (25 if closed else 1) * MIB:
            closed.append(open_)
            open_ = 0
    return closed + [open_] * (open_ > 0)


def all_reduce(size, devices, network):
    """Return (seconds, "ring" or "tree") of the faster way to sum `size` bytes over all devices.

    In a ring each byte passes twice over every link but one; a chunk takes each hop twice (Patarasuk and Yuan 2009). In a pair of
    trees over the machines (Sanders, Speck, Traeff 2009), with a chain in each of them, as NCCL has it, all bytes pass twice, over
    fewer hops.
    """
    if devices == 1:
        return 0.0, "ring"
    inside = min(devices, network.per_machine)
    machines = math.ceil(devices / inside)
    bandwidth = min(network.bandwidth, network.inner_bandwidth) if machines > 1 else network.inner_bandwidth
    between = machines if machines > 1 else 0
    ring = 2 * (devices - 1) / devices * size / bandwidth
    ring += 2 * (devices - 1) / devices * (between * network.latency + (devices - between) * network.inner_latency)
    tree = 2 * size / bandwidth
    tree += 2 * (math.ceil(math.log2(machines)) * network.latency + (inside - 1) * network.inner_latency)
    return min((ring, "ring"), (tree, "tree"))


def waiting(compute, devices, work, network):
    """Return the seconds that a step of `compute` seconds on each device then waits for the gradients of all."""
    backward = BACKWARD * compute if work.overlaps else 0.0
    done, ready, total = 0.0, 0, sum(work.buckets)
    for bucket in work.buckets:
        ready += bucket
        done = max(done, backward * ready / total) + all_reduce(bucket, devices, network)[0]
    return max(0.0, done - backward)


def compute(batch, work):
    """Return the seconds that a device computes in a step of `batch` images."""
    return work.fixed + work.per_image * batch


def step(batch, devices, work, network):
    """Return (seconds of a step of `batch` images on each device, seconds of it that wait for gradients)."""
    alone = compute(batch, work)
    waits = waiting(alone, devices, work, network)
    return alone + waits, waits


def fit(points, work, network):
    """Return `work` with its `fixed` and `per_image` from measured `points` (devices, images a device, seconds of a step): the line of
    least squares through what each step has computed. A single point leaves nothing for `fixed`.

    Raises ValueError where the network alone takes longer than a step.
    """
    computed = [(batch, _without_waiting(seconds, devices, work, network)) for devices, batch, seconds in points]
    batches, times = zip(*computed)
    mean, middle = sum(times) / len(times), sum(batches) / len(batches)
    spread = sum((batch - middle) ** 2 for batch in batches)
    slope = sum((batch - middle) * (time - mean) for batch, time in computed) / spread if spread else mean / middle
    if 0 < slope <= mean / middle:
        return work._replace(fixed=mean - slope * middle, per_image=slope)
    # No line of compute: take the one through nothing for no image.
    return work._replace(fixed=0.0, per_image=sum(batch * time for batch, time in computed) / sum(batch ** 2 for batch in batches))


def _without_waiting(seconds, devices, work, network):
    """Return the compute of a step that took `seconds` with its waiting, which depends on it and never shrinks faster."""
    if waiting(0.0, devices, work, network) >= seconds:
        raise ValueError("all-reduces over %d devices alone would take %.3g s, more than the measured step's %.3g s"
                         % (devices, waiting(0.0, devices, work, network), seconds))
    low, high = 0.0, seconds
    for _ in range(60):
        middle = (low + high) / 2
        if middle + waiting(middle, devices, work, network) > seconds:
            high = middle
        else:
            low = middle
    return low


def least_batch(devices, work, network):
    """Return the smallest batch of a device from which on communication binds no step (BOUND), None where none is: below it, it does."""
    return _first(lambda batch: step(batch, devices, work, network)[1] <= BOUND * step(batch, devices, work, network)[0])


def starving_batch(devices, work, network, machine_input):
    """Return the smallest batch of a device from which on the devices of a machine ask for more images than the `machine_input` a second
    that its loaders give, None where none is."""
    inside = min(devices, network.per_machine)
    return _first(lambda batch: inside * batch / step(batch, devices, work, network)[0] > machine_input)


def _first(holds, most=2 ** 20):
    """Return the smallest number from 1 on for which `holds`, which goes on to hold; None where there is none up to `most`."""
    if not holds(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
