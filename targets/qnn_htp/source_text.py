"""Texts of the programs in :mod:`edgekit.targets.qnn_htp.source`, with ``$names`` to fill in."""

from __future__ import annotations

CPP = r"""$head
//
// Link ONNX Runtime built with QNN. With ONNX Runtime's plugin of QNN, register its library first
// (Ort::Env::RegisterExecutionProviderLibrary) and append the devices it offers instead of "QNN".

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace edgekit_model {

constexpr const char* kContext = $context;
constexpr const char* kInputNames[] = {$input_names};
constexpr const char* kOutputNames[] = {$output_names};

struct Inputs {
$input_fields
};

struct Outputs {
$output_fields
};

template <typename T>
std::vector<T> Checked(const std::vector<T>& values, std::size_t count, const char* name) {
  if (values.size() != count) {
    throw std::invalid_argument(std::string(name) + " has another number of values");
  }
  return values;
}

// Rounds half to even (the default rounding mode) and saturates; NaN gets the lowest code.
template <typename T>
std::vector<T> Quantize(const std::vector<float>& values, std::size_t count, const char* name, float scale,
                        std::int32_t zero_point) {
  if (values.size() != count) {
    throw std::invalid_argument(std::string(name) + " has another number of values");
  }
  constexpr double low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  std::vector<T> codes(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double code = std::nearbyint(static_cast<double>(values[i] / scale)) + zero_point;
    codes[i] = static_cast<T>(code >= high ? high : code > low ? code : low);
  }
  return codes;
}

template <typename T>
std::vector<T> Values(const Ort::Value& tensor) {
  const T* data = tensor.GetTensorData<T>();
  return std::vector<T>(data, data + tensor.GetTensorTypeAndShapeInfo().GetElementCount());
}

template <typename T>
std::vector<float> Dequantize(const Ort::Value& tensor, float scale, std::int32_t zero_point) {
  const T* data = tensor.GetTensorData<T>();
  std::vector<float> values(tensor.GetTensorTypeAndShapeInfo().GetElementCount());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(static_cast<std::int32_t>(data[i]) - zero_point) * scale;
  }
  return values;
}

template <typename T, std::size_t kRank>
Ort::Value Tensor(const Ort::MemoryInfo& memory, std::vector<T>& data,
                  const std::array<std::int64_t, kRank>& shape) {
  return Ort::Value::CreateTensor<T>(memory, data.data(), data.size(), shape.data(), shape.size());
}

class Model {
 public:
  explicit Model(const ORTCHAR_T* path, const std::string& backend = "libQnnHtp.so")
      : session_(env_, path, Options(backend)) {}

  Outputs Run(const Inputs& in) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> feeds;
$feeds
    const std::vector<Ort::Value> found =
        session_.Run(Ort::RunOptions{nullptr}, kInputNames, feeds.data(), feeds.size(), kOutputNames,
                     std::size(kOutputNames));
    Outputs out;
$results
    return out;
  }

 private:
  static Ort::SessionOptions Options(const std::string& backend) {
    Ort::SessionOptions options;
    options.AddConfigEntry("session.disable_cpu_ep_fallback", "$strict");
    // "htp_performance_mode": "burst" is fastest and hottest; without it the default mode runs.
    const std::unordered_map<std::string, std::string> qnn{{"backend_path", backend},
                                                           {"enable_htp_fp16_precision", "0"}};
    options.AppendExecutionProvider("QNN", qnn);
    return options;
  }

  Ort::Env env_{ORT_LOGGING_LEVEL_WARNING, "edgekit"};
  Ort::Session session_;
};

}  // namespace edgekit_model

#ifdef EDGEKIT_EXAMPLE
int main(int count, char** arguments) {
  edgekit_model::Model model(count > 1 ? arguments[1] : edgekit_model::kContext);
  edgekit_model::Inputs in;
$zeros
  const edgekit_model::Outputs out = model.Run(in);
$shown
  return 0;
}
#endif
"""

JAVA = r"""$head
//
// Needs com.microsoft.onnxruntime:onnxruntime-android-qnn, minSdk 27, and in the manifest
// <uses-native-library android:name="libcdsprpc.so" android:required="false"/>.

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.File;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;

public final class $name implements AutoCloseable {
  public static final String CONTEXT = $context;

  public static final class Inputs {
$input_fields
  }

  public static final class Outputs {
$output_fields
  }

  private final OrtEnvironment env = OrtEnvironment.getEnvironment();
  private final OrtSession session;

  /** Loads the file from a folder that the application may read, such as getFilesDir(). */
  public $name(File folder) throws OrtException {
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.addConfigEntry("session.disable_cpu_ep_fallback", "$strict");
      Map<String, String> qnn = new HashMap<>();
      qnn.put("backend_path", "libQnnHtp.so");
      qnn.put("enable_htp_fp16_precision", "0");
      // "htp_performance_mode": "burst" is fastest and hottest; without it the default mode runs.
      options.addQnn(qnn);
      session = env.createSession(new File(folder, CONTEXT).getPath(), options);
    }
  }

  public Outputs run(Inputs in) throws OrtException {
    Map<String, OnnxTensor> feeds = new LinkedHashMap<>();
    try {
$feeds
      try (OrtSession.Result found = session.run(feeds)) {
        Outputs out = new Outputs();
$results
        return out;
      }
    } finally {
      for (OnnxTensor tensor : feeds.values()) {
        tensor.close();
      }
    }
  }

  @Override
  public void close() throws OrtException {
    session.close();
  }

  /** Rounds half to even and saturates; NaN gets the lowest code. */
  private static int code(float value, float scale, int zero, int low, int high) {
    double code = Math.rint(value / scale) + zero;
    return code >= high ? high : code > low ? (int) code : low;
  }

  private static void check(String name, int found, long[] shape) {
    long count = 1;
    for (long size : shape) {
      count *= size;
    }
    if (found != count) {
      throw new IllegalArgumentException(name + " needs " + count + " values, not " + found);
    }
  }

  private static ByteBuffer room(long bytes) {
    return ByteBuffer.allocateDirect((int) bytes).order(ByteOrder.nativeOrder());
  }

  private void quantize8(Map<String, OnnxTensor> feeds, String name, float[] values, long[] shape,
      float scale, int zero, int low, int high, OnnxJavaType type) throws OrtException {
    check(name, values.length, shape);
    ByteBuffer codes = room(values.length);
    for (float value : values) {
      codes.put((byte) code(value, scale, zero, low, high));
    }
    ((Buffer) codes).rewind();
    feeds.put(name, OnnxTensor.createTensor(env, codes, shape, type));
  }

  private void quantize16(Map<String, OnnxTensor> feeds, String name, float[] values, long[] shape,
      float scale, int zero, int low, int high) throws OrtException {
    check(name, values.length, shape);
    ShortBuffer codes = room(2L * values.length).asShortBuffer();
    for (float value : values) {
      codes.put((short) code(value, scale, zero, low, high));
    }
    ((Buffer) codes).rewind();
    feeds.put(name, OnnxTensor.createTensor(env, codes, shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, float[] values, long[] shape)
      throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, FloatBuffer.wrap(values), shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, double[] values, long[] shape)
      throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, DoubleBuffer.wrap(values), shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, short[] values, long[] shape)
      throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, ShortBuffer.wrap(values), shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, int[] values, long[] shape)
      throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, IntBuffer.wrap(values), shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, long[] values, long[] shape)
      throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, LongBuffer.wrap(values), shape));
  }

  private void feed(Map<String, OnnxTensor> feeds, String name, byte[] values, long[] shape,
      OnnxJavaType type) throws OrtException {
    check(name, values.length, shape);
    feeds.put(name, OnnxTensor.createTensor(env, ByteBuffer.wrap(values), shape, type));
  }

  private static OnnxTensor tensor(OrtSession.Result found, String name) throws OrtException {
    return (OnnxTensor) found.get(name).orElseThrow(() -> new IllegalStateException(name));
  }

  private static byte[] bytes(OrtSession.Result found, String name) throws OrtException {
    ByteBuffer buffer = tensor(found, name).getByteBuffer();
    byte[] values = new byte[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static short[] shorts(OrtSession.Result found, String name) throws OrtException {
    ShortBuffer buffer = tensor(found, name).getShortBuffer();
    short[] values = new short[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static int[] ints(OrtSession.Result found, String name) throws OrtException {
    IntBuffer buffer = tensor(found, name).getIntBuffer();
    int[] values = new int[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static long[] longs(OrtSession.Result found, String name) throws OrtException {
    LongBuffer buffer = tensor(found, name).getLongBuffer();
    long[] values = new long[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static float[] floats(OrtSession.Result found, String name) throws OrtException {
    FloatBuffer buffer = tensor(found, name).getFloatBuffer();
    float[] values = new float[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static double[] doubles(OrtSession.Result found, String name) throws OrtException {
    DoubleBuffer buffer = tensor(found, name).getDoubleBuffer();
    double[] values = new double[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  private static float[] dequantize(byte[] codes, int mask, float scale, int zero) {
    float[] values = new float[codes.length];
    for (int i = 0; i < codes.length; i++) {
      values[i] = ((codes[i] & mask) - zero) * scale;
    }
    return values;
  }

  private static float[] dequantize(short[] codes, int mask, float scale, int zero) {
    float[] values = new float[codes.length];
    for (int i = 0; i < codes.length; i++) {
      values[i] = ((codes[i] & mask) - zero) * scale;
    }
    return values;
  }
}
"""

PYTHON = r'''$head
#
# As a program: python THIS.py inputs.npz outputs.npz, with the arrays arr_0, arr_1 ... in order.
# On a machine without a Hexagon the same package emulates it.

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn as qnn

CONTEXT = Path(__file__).with_name($context)
# name: (type in the file, shape, scale, zero point); real = scale * (code - zero point)
INPUTS = {
$inputs
}
OUTPUTS = {
$outputs
}


class Model:
    """The network in ONNX Runtime, on the Hexagon Tensor Processor."""

    def __init__(self, path=CONTEXT, **settings):
        name = qnn.get_ep_name()
        if not any(device.ep_name == name for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(name, qnn.get_library_path())
        devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
        if not devices:
            raise RuntimeError(f"{name} offers no device on this machine")
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "$strict")
        # htp_performance_mode="burst" is fastest and hottest; without it the default mode runs.
        provider = {"backend_path": qnn.get_qnn_htp_path(), "enable_htp_fp16_precision": "0", **settings}
        options.add_provider_for_devices(devices, provider)
        self.session = ort.InferenceSession(str(path), options)

    def __call__(self, feeds):
        """Real values by name in, real values by name out."""
        return {name: real(name, values) for name, values in self.codes(feeds).items()}

    def codes(self, feeds):
        """Real values by name in; what the file gives by name out."""
        given = {name: coded(name, feeds[name]) for name in INPUTS}
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), given)))


def coded(name, values):
    """What the file takes: codes, rounded half to even and saturated; NaN gets the lowest code."""
    dtype, shape, scale, zero = INPUTS[name]
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"input {name!r} has the shape {shape}, not {values.shape}")
    if scale is None:
        return np.ascontiguousarray(values, dtype)
    limits = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        steps = np.rint(values.astype(np.float32) / np.float32(scale)).astype(np.float64) + zero
    return np.nan_to_num(np.clip(steps, limits.min, limits.max), nan=float(limits.min)).astype(dtype)


def real(name, values):
    """What the file gives, as real values."""
    _, _, scale, zero = OUTPUTS[name]
    if scale is None:
        return values
    return (values.astype(np.int32) - zero).astype(np.float32) * np.float32(scale)


def main(inputs, outputs):
    with np.load(inputs) as arrays:
        feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(INPUTS)}
    np.savez(outputs, *Model()(feeds).values())


if __name__ == "__main__":
    main(*sys.argv[1:3])
'''
