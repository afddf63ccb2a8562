"""Running a graph in torch, differentiably, and training it against its teacher."""
