"""What `bench.gpu` needs besides torch and numpy, and how that gets to a machine without network."""

WHEELS = """\
On a machine with network, for the other one's Python (here 3.12), then carry .whl:
  pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl diffusers==0.41.0 DeepCache==0.1.1 \\
      stable-diffusion-sdkit==2.1.5 imaginairy==15.0.0 omegaconf==2.4.0 einops==0.8.2
There, where transformers, huggingface-hub, psutil, pyyaml and safetensors are installed already:
  python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site timeout --signal=TERM 580 python3 -m bench.gpu --out OUT
To go on with what an earlier run on the same card left, put its speed-gpu.json into OUT first."""
