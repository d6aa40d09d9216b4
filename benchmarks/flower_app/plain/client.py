"""A client that does not train: fresh random values, as many as it got."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    (values,) = message.content["arrays"].to_numpy_ndarrays()
    fresh = np.random.default_rng().standard_normal(values.size, dtype=np.float32)
    content = {"arrays": ArrayRecord([fresh]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
