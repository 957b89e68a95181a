"""`spark_ort.register` chooses the provider that this ONNX Runtime and machine have."""

import driver


def test_a_gpu_is_taken_where_there_is_one(scenario):
    for gpu in ["True", "auto"]:
        got = scenario("chosen", gpu).result
        assert got["name"] == driver.PROVIDER
        assert [name for _, name in got["placed"]] == [driver.PROVIDER] * 2


def test_the_cpu_is_taken_where_there_is_none(scenario):
    assert scenario("chosen", "auto", GPU_SIM_DEVICES="0").result["name"] == "CPUExecutionProvider"
    assert scenario("chosen", "False").result["name"] == "CPUExecutionProvider"


def test_why_there_is_no_gpu(scenario):
    message = scenario("chosen", "True", GPU_SIM_DEVICES="0").result["error"]
    assert message.startswith("no GPU can be used: CUDAExecutionProvider: ")
    assert "finds no" in message and "SparkExecutionProvider: " in message
