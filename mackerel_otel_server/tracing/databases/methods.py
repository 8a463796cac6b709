"""The methods of a driver's cursors, traced: what execute() does while a request is under way."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.process.looks_like_original import imitates
from mackerel_otel_server.tracing.databases.queries import Given, begin, parent_of_query
from mackerel_otel_server.tracing.databases.statements import QueryOf, given_query

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.databases.driver import Driver

Method = Callable[..., Any]


def traced_method(method: Method, driver: Driver, query_of: QueryOf = given_query) -> Method:
    """Make a span of each call of a cursor's method: a function, a coroutine function or a generator of either kind.

    Outside of a sampled trace, and in a process that does not trace, a query has no parent and gets no span: the
    driver's method is called at once. ``query_of`` finds the query in the arguments that follow the cursor.
    """
    if method.__name__ == "callproc":
        query_of = _called
    if inspect.isasyncgenfunction(method):
        return _traced_async_generator(method, driver, query_of)
    if inspect.isgeneratorfunction(method):
        return _traced_generator(method, driver, query_of)
    if inspect.iscoroutinefunction(method):
        return _traced_coroutine(method, driver, query_of)

    @imitates(method)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent = parent_of_query()
        query = None if parent is None else begin(parent, driver, self, query_of, (args, kwargs))
        if query is None:
            return method(self, *args, **kwargs)
        try:
            query.run()
            return method(self, *args, **kwargs)
        except BaseException as error:
            query.failed(error)
            raise
        finally:
            query.end()

    return execute


def traced_manager(method: Method, driver: Driver, *, asynchronous: bool) -> Method:
    """Make a span of each use of a context manager that a cursor's method returns, from entering to leaving it."""
    if asynchronous:

        @imitates(method)
        @asynccontextmanager
        async def async_manager(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with _lasting(driver, self, given_query, (args, kwargs)):
                async with method(self, *args, **kwargs) as entered:
                    yield entered

        return async_manager

    @imitates(method)
    @contextmanager
    def manager(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _lasting(driver, self, given_query, (args, kwargs)), method(self, *args, **kwargs) as entered:
            yield entered

    return manager


def _traced_coroutine(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    async def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent = parent_of_query()
        query = None if parent is None else begin(parent, driver, self, query_of, (args, kwargs))
        if query is None:
            return await method(self, *args, **kwargs)
        try:
            query.run(current=False)
            return await method(self, *args, **kwargs)
        except BaseException as error:
            query.failed(error)
            raise
        finally:
            query.end()

    return execute


def _traced_generator(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _lasting(driver, self, query_of, (args, kwargs)):
            yield from method(self, *args, **kwargs)

    return stream


def _traced_async_generator(method: Method, driver: Driver, query_of: QueryOf) -> Method:
    @imitates(method)
    async def stream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with _lasting(driver, self, query_of, (args, kwargs)):
            async with aclosing(method(self, *args, **kwargs)) as rows:
                async for row in rows:
                    yield row

    return stream


@contextmanager
def _lasting(driver: Driver, cursor: Any, query_of: QueryOf, given: Given) -> Iterator[None]:
    """Keep a span open while the application works with what the database sends, without making it current there."""
    parent = parent_of_query()
    query = None if parent is None else begin(parent, driver, cursor, query_of, given)
    try:
        yield
    except GeneratorExit:
        # The application has stopped reading, which is no error.
        raise
    except BaseException as error:
        if query is not None:
            query.failed(error)
        raise
    finally:
        if query is not None:
            query.end()


def _called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"CALL {given_query(args, kwargs)}"
