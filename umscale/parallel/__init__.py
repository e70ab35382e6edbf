"""One run on several processes: data parallel, with value tables whole on each or split by channel.

``world`` is who takes part and what they tell each other, ``shards`` which columns of a table a process holds,
``lookup`` how tokens reach them, ``gradients`` the sum over replicas; ``launch`` starts the processes, each a
``worker``. See docs/parallel.md.
"""
