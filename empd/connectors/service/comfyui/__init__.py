"""ComfyUI: one prompt per job against a stock server.

local, remote, advanced, batch     the connectors
└── connector                      what they share: life, health, models, log
    └── prompt                     one prompt from submission to files, and its cancel
        ├── server                 the HTTP calls
        ├── listener               the WebSocket of one prompt
        └── messages, progress, outputs, workflow, templates, refusals     pure
"""
