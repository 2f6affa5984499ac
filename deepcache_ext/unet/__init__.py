"""Other people's UNets: how their blocks are shadowed for a call, how calls are told apart, what is left alone."""
