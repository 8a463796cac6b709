"""FastAPI applications that fail while or after a response is sent, with and without a middleware in between."""

from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

application = FastAPI()


@application.get("/midstream")
async def midstream():
    async def parts():
        yield "a"
        raise ValueError("midstream")

    return StreamingResponse(parts())


@application.get("/background")
async def background(tasks: BackgroundTasks):
    def fail():
        raise ValueError("background")

    tasks.add_task(fail)
    return 1


async def dependency():
    yield 1
    raise ValueError("teardown")


@application.get("/teardown")
async def teardown(value: Annotated[int, Depends(dependency)]):
    return value


@application.get("/wrong")
async def wrong():
    raise ValueError("wrong")


class Middleware(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


behind_middleware = FastAPI(routes=application.routes)
behind_middleware.add_middleware(Middleware)
