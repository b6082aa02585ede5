"""Compare SyncBatchNorm on this rank's images with BatchNorm of all images on the CPU.

Run by test_ranks under Paddle's launcher. Prints the greatest differences of output, gradient and
running variance.
"""

import numpy as np
import paddle
import paddle.distributed as dist

from fcos_recipe.system import compute


def run(norm: paddle.nn.Layer, images: paddle.Tensor) -> tuple[np.ndarray, ...]:
    images.stop_gradient = False
    out = norm(images)
    (out**3).sum().backward()
    return out.numpy(), images.grad.numpy(), norm._variance.numpy()


def main() -> None:
    compute.start("iluvatar_gpu")
    dist.init_parallel_env()
    dist.all_reduce(paddle.ones([1]))  # makes the communicator, as broadcasting weights does
    images = np.random.default_rng(0).normal(2, 3, (4, 5, 3, 3)).astype("float32")
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    plain = paddle.nn.Sequential(paddle.nn.BatchNorm2D(5))
    synchronised = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(plain)[0]
    assert isinstance(synchronised, paddle.nn.SyncBatchNorm)
    got = run(synchronised, paddle.to_tensor(images[mine]))
    paddle.set_device("cpu")
    out, gradient, variance = run(paddle.nn.BatchNorm2D(5), paddle.to_tensor(images))
    wanted = out[mine], gradient[mine], variance
    print("differences", *[float(np.abs(a - b).max()) for a, b in zip(got, wanted)])


if __name__ == "__main__":
    main()
