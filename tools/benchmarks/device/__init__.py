"""Learning speed on one device with different arrangements, beside backpropagation and plain matrix products.

    one_stream       the serial reference: one layer after another, on one stream
    stage_streams    what the product does: a thread and a stream for each layer, with bounded queues between them
    stage_graphs     an experiment, not in the product: one CUDA graph for the forward pass of each layer and one for
                     its update, so that the host launches two graphs instead of about fifty kernels. The learning
                     rate stays at its first value
    backprop_mlp     an MLP of the same widths and batch size, trained by backpropagation
    products         only the forward and the weight-gradient product of every layer

All except `products` copy their images from the host's memory for each microbatch.
"""
