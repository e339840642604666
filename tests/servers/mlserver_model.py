"""MLServer with one model for the tests: doubles numbers, raises its voice, breaks and waits on demand.

python mlserver_model.py GRPC_PORT HTTP_PORT        in the environment of mlserver.txt
"""

import asyncio
import sys

from mlserver import MLModel
from mlserver.server import MLServer
from mlserver.settings import ModelParameters, ModelSettings, Settings
from mlserver.types import InferenceResponse, ResponseOutput


class Arithmetic(MLModel):
    async def load(self):
        self.stopped = 0
        return True

    async def predict(self, payload):
        wishes = dict(payload.parameters or {})
        if wishes.get("break"):
            raise ValueError("the model broke")
        try:
            await asyncio.sleep(wishes.get("wait_s", 0))
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        outputs = [self._doubled(tensor) for tensor in payload.inputs if tensor.name != "stopped"]
        if not outputs:
            outputs = [ResponseOutput(name="stopped", datatype="INT32", shape=[1], data=[self.stopped])]
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=outputs)

    async def predict_stream(self, payloads):
        async for payload in payloads:
            for number in range(dict(payload.parameters or {}).get("answers", 1)):
                answer = await self.predict(payload)
                answer.outputs[0].data.root[0] = number
                yield answer

    def _doubled(self, tensor):
        data = [item.upper() if isinstance(item, (str, bytes)) else item * 2 for item in tensor.data.root]
        if tensor.datatype == "BOOL":
            data = [not item for item in tensor.data.root]
        return ResponseOutput(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=data)


async def main(grpc_port: int, http_port: int) -> None:
    settings = Settings(
        host="127.0.0.1",
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_endpoint=None,
        parallel_workers=0,
        load_models_at_startup=False,
    )
    model = ModelSettings(
        name="arithmetic", implementation=Arithmetic, parameters=ModelParameters(uri=".", version="v3")
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
