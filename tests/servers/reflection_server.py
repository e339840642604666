"""A text writer behind gRPC that says what it is by grpcio's reflection. Prints its port.

python reflection_server.py        in the environment of reflection.txt
"""

from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from grpc_reflection.v1alpha import reflection

FIELD = descriptor_pb2.FieldDescriptorProto
POOL = descriptor_pool.Default()


def message(file, name, **fields):
    made = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), 1):
        added = made.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL)
        if isinstance(kind, str):
            added.type, added.type_name = FIELD.TYPE_MESSAGE, kind
        else:
            added.type = kind


def describe():
    """Two files, one of which imports the other and one that every library has."""
    common = descriptor_pb2.FileDescriptorProto(name="demo/common.proto", package="demo", syntax="proto3")
    message(common, "Mood", loud=FIELD.TYPE_BOOL)
    writer = descriptor_pb2.FileDescriptorProto(name="demo/writer.proto", package="demo", syntax="proto3")
    writer.dependency.extend([common.name, struct_pb2.DESCRIPTOR.name])
    message(
        writer,
        "Wish",
        prompt=FIELD.TYPE_STRING,
        words=FIELD.TYPE_INT32,
        mood=".demo.Mood",
        options=".google.protobuf.Struct",
    )
    message(writer, "Piece", text=FIELD.TYPE_STRING, progress=FIELD.TYPE_DOUBLE, size=FIELD.TYPE_INT64)
    service = writer.service.add(name="Writer")
    for name, client, server in (("Write", False, False), ("WriteStream", False, True), ("Gather", True, False)):
        service.method.add(
            name=name,
            input_type=".demo.Wish",
            output_type=".demo.Piece",
            client_streaming=client,
            server_streaming=server,
        )
    for file in (common, writer):
        POOL.AddSerializedFile(file.SerializeToString())


def main():
    describe()
    wish = message_factory.GetMessageClass(POOL.FindMessageTypeByName("demo.Wish"))
    piece = message_factory.GetMessageClass(POOL.FindMessageTypeByName("demo.Piece"))

    def text_of(asked):
        text = asked.prompt + "".join(f", {name}" for name in sorted(asked.options))
        return text.upper() if asked.mood.loud else text

    def write(asked, context):
        if not asked.prompt:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nothing to write about")
        return piece(text=text_of(asked), size=len(asked.prompt))

    def write_stream(asked, context):
        for number in range(asked.words):
            yield piece(text=f"{text_of(asked)}{number} ", progress=(number + 1) / asked.words)

    def gather(wishes, context):
        return piece(text=" ".join(text_of(asked) for asked in wishes))

    kinds = {"request_deserializer": wish.FromString, "response_serializer": piece.SerializeToString}
    handlers = {
        "Write": grpc.unary_unary_rpc_method_handler(write, **kinds),
        "WriteStream": grpc.unary_stream_rpc_method_handler(write_stream, **kinds),
        "Gather": grpc.stream_unary_rpc_method_handler(gather, **kinds),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("demo.Writer", handlers)])
    reflection.enable_server_reflection(["demo.Writer", reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
