"""What runs in the environment of a peer of the TFLite writer; it needs nothing of edgekit.

    python tflite_peers_worker.py JOB.json

The job is a JSON object: ``task`` is ``litert-torch``, ``onnx2tf`` or ``size``. The two converters take
``model`` (ONNX, float, fixed shapes), ``data`` (``.npz``: calibration arrays by input name, the sample axis
first, as the ONNX model takes them) and ``folder`` (for what they write). ``size`` takes ``packages`` and
``without`` (requirements, extras allowed): the files of the first and of all they need, less what the second
need. The answer is the last line of stdout, as JSON.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

Answer = dict[str, Any]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tasks = {"litert-torch": _litert_torch, "onnx2tf": _onnx2tf, "size": _size}
    answer = tasks[job["task"]](job)
    print(json.dumps(answer), flush=True)


def _litert_torch(job: Answer) -> Answer:
    """onnx2torch, torch.export, the PT2E quantizer of litert-torch (int8, static, weights per channel).

    Images go in and out channels last (``to_channel_last_io``), which spares this converter transposes.
    """
    start = time.perf_counter()
    import onnx
    import torch

    library = _declare_torchvision(torch)
    litert_torch, onnx2torch = _module("litert_torch"), _module("onnx2torch")
    pt2e = _module("torchao.quantization.pt2e.quantize_pt2e")
    quantizers, configs = (_module(f"litert_torch.quantize.{n}") for n in ("pt2e_quantizer", "quant_config"))
    seconds = {"import": time.perf_counter() - start}
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    model = onnx.load(job["model"])
    network = onnx2torch.convert(model).eval()
    _fix_resizes(network, torch)
    images = [[_rank(v) == 4 for v in ports].copy() for ports in (model.graph.input, model.graph.output)]
    places = [[i for i, image in enumerate(kind) if image] for kind in images]
    network = litert_torch.to_channel_last_io(network, args=places[0], outputs=places[1])
    arrays = [_channels_last(v) for v in _arrays(job, [v.name for v in model.graph.input])]
    samples = [tuple(torch.from_numpy(a[i : i + 1]) for a in arrays) for i in range(len(arrays[0]))]
    quantizer = quantizers.PT2EQuantizer().set_global(
        quantizers.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    )
    with torch.no_grad():
        exported = torch.export.export(network, samples[0]).module()
        prepared = pt2e.prepare_pt2e(exported, quantizer)
        for sample in samples:
            prepared(*sample)
        quantized = pt2e.convert_pt2e(prepared, fold_quantize=False)
    seconds["quantize"] = time.perf_counter() - start
    start = time.perf_counter()
    path = Path(job["folder"]) / "litert_torch.tflite"
    config = configs.QuantConfig(pt2e_quantizer=quantizer)
    litert_torch.convert(quantized, samples[0], quant_config=config).export(str(path))
    seconds["convert"] = time.perf_counter() - start
    seconds["cpu"] = time.process_time() - cpu
    del library
    how = {"how": "PT2E, per-channel", "packages": ["litert-torch", "onnx2torch"], "failed": []}
    return {"path": str(path), "seconds": seconds, **how, **_versions("litert-torch")}


def _onnx2tf(job: Answer) -> Answer:
    """onnx2tf with its own static int8 quantization, per channel, int8 inputs and outputs.

    One call calibrates and writes all of its files (float32, float16, four quantized); there is no way to
    have but one. Where its default fails, its other ways are tried: by TensorFlow, if that is installed, then
    one scale for each weight tensor. What failed is part of the answer.
    """
    start = time.perf_counter()
    import onnx

    onnx2tf = _module("onnx2tf")
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if has_tensorflow:
        _module("tensorflow"), _module("tf_keras")
    seconds = {"import": time.perf_counter() - start}
    names = [v.name for v in onnx.load(job["model"], load_external_data=False).graph.input]
    calibration = []
    for i, (name, array) in enumerate(zip(names, _arrays(job, names), strict=True)):
        stored = _channels_last(array)
        np.save(Path(job["folder"]) / f"input{i}.npy", stored)
        neutral = [np.full([1] * stored.ndim, v, np.float32) for v in (0.0, 1.0)]
        calibration.append([name, str(Path(job["folder"]) / f"input{i}.npy"), *neutral])
    ways = [("flatbuffer_direct", "per-channel"), ("flatbuffer_direct", "per-tensor")]
    if has_tensorflow:
        ways.insert(1, ("tf_converter", "per-channel"))
    failed = []
    for backend, scales in ways:
        folder = Path(job["folder"]) / f"{backend}-{scales}"
        start, cpu = time.perf_counter(), time.process_time()
        try:
            onnx2tf.convert(
                input_onnx_file_path=job["model"],
                output_folder_path=str(folder),
                output_integer_quantized_tflite=True,
                copy_onnx_input_output_names_to_tflite=True,
                tflite_backend=backend,
                quant_type=scales,
                custom_input_op_name_np_data_path=calibration,
                input_quant_dtype="int8",
                output_quant_dtype="int8",
                non_verbose=True,
            )
        except (Exception, SystemExit) as error:  # it raises classes of its own, and leaves the process
            failed.append(f"{backend}, {scales}: {_root_of(error)}"[:300])
            continue
        seconds["quantize and convert"] = time.perf_counter() - start
        seconds["cpu"] = time.process_time() - cpu
        path = folder / f"{Path(job['model']).stem}_full_integer_quant.tflite"
        if path.is_file():
            needed = ["onnx2tf[tensorflow]" if backend == "tf_converter" else "onnx2tf"]
            how = {"how": f"{backend}, {scales}", "packages": needed, "failed": failed}
            return {"path": str(path), "seconds": seconds, **how, **_versions("onnx2tf")}
        failed.append(f"{backend}, {scales}: wrote no {path.name}")
    raise SystemExit("\n".join(failed))


def _root_of(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _declare_torchvision(torch: Any) -> Any:
    """Declare the operators that onnx2torch's import of torchvision needs; they live as long as the result.

    torchvision from PyPI is built for CUDA: beside a torch without CUDA its library does not load, and then
    importing it fails for want of two operators that no network here has.
    """
    if torch.cuda.is_available():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _fix_resizes(network: Any, torch: Any) -> None:
    """Put modules with constant factors where onnx2torch reads factors from a tensor: torch.export refuses
    sizes that depend on data."""
    for node in network.graph.nodes:
        scales = node.kwargs.get("scales")
        if node.op != "call_module" or scales is None or scales.op != "get_attr":
            continue
        factors = network
        for part in scales.target.split("."):
            factors = getattr(factors, part)
        mode = {"nearest": "nearest", "linear": "bilinear"}[network.get_submodule(node.target).onnx_mode]
        constant = torch.nn.Upsample(scale_factor=tuple(factors.tolist()[2:]), mode=mode)
        network.set_submodule(node.target, constant)
        node.args, node.kwargs = node.args[:1], {}
    network.graph.eliminate_dead_code()
    network.recompile()


def _size(job: Answer) -> Answer:
    found = _closure(job["packages"]) - _closure(job["without"])
    sizes = {name: _bytes(name) for name in sorted(found)}
    return {"bytes": sum(sizes.values()), "packages": sizes}


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _versions(package: str) -> Answer:
    return {"version": importlib.metadata.version(package), "python": sys.version.split()[0]}


def _rank(value: Any) -> int:
    return len(value.type.tensor_type.shape.dim)


def _arrays(job: Answer, names: list[str]) -> list[np.ndarray[Any, Any]]:
    with np.load(job["data"]) as arrays:
        return [arrays[name] for name in names]


def _channels_last(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def _closure(requirements: list[str]) -> set[str]:
    """Installed distributions that the requirements and all of theirs name, in their spelling on PyPI."""
    try:
        kind = importlib.import_module("packaging.requirements").Requirement
    except ModuleNotFoundError:  # every environment with pip has it there
        kind = importlib.import_module("pip._vendor.packaging.requirements").Requirement
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(kind(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = requirement.name.lower().replace("_", "-").replace(".", "-")
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # optional, and not installed
        found.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(kind(text), wanted) for text in needed]
    return found


def _bytes(name: str) -> int:
    """What the files of a distribution take on the disk, as ``du`` counts."""
    files = importlib.metadata.files(name) or []
    paths = {Path(str(f.locate())).resolve() for f in files}
    return sum(512 * p.stat().st_blocks for p in paths if p.is_file())


if __name__ == "__main__":
    main()
