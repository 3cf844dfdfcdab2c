"""Walk in imagination, in a local web page: `lssvwm play`.

Data flow, from the page inwards:

    server      token, limits, websocket; one `Session` for each open page
    messages    text of the page -> checked message; reply -> text
    session     one visitor; one method for each message
    walk        mode, history and memory of the visitor's walk
    planning    candidate plans for a goal
    views       replies that show all this
    mind        what one agent remembers and expects; nothing in it changes
    world       one real episode that can be copied and changed
    library     models that the page offers, loaded once

Only `server` needs the extra `play`. Everything else is plain Python and torch.
"""
