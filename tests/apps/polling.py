"""The first request starts something that queries for ever, whenever a request asks it to."""

import asyncio
import contextvars
import queue
import sqlite3
import threading

started = []


def query():
    connection = sqlite3.connect(":memory:")
    connection.execute("SELECT 'poll'").fetchall()
    connection.close()


async def poll(asked, answered):
    while True:
        await asked.get()
        query()
        answered.put_nowait(None)


async def application(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    if not started:
        asked, answered = asyncio.Queue(), asyncio.Queue()
        started[:] = asked, answered, asyncio.create_task(poll(asked, answered))
    started[0].put_nowait(None)
    await started[1].get()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def poll_in_thread(asked, answered):
    while True:
        asked.get()
        query()
        answered.put(None)


def wsgi(environ, start_response):
    if not started:
        asked, answered = queue.Queue(), queue.Queue()
        arguments = poll_in_thread, asked, answered
        thread = threading.Thread(target=contextvars.copy_context().run, args=arguments, daemon=True)
        thread.start()
        started[:] = asked, answered, thread
    started[0].put(None)
    started[1].get()
    start_response("200 OK", [("Content-Length", "0")])
    return []
