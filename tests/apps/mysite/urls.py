import os
import time

from django.db import connections
from django.db.models import Value
from django.http import HttpResponse
from django.urls import path
from opentelemetry import trace

tracer = trace.get_tracer("mysite")


def pid(request):
    time.sleep(0.1)
    return HttpResponse(str(os.getpid()))


def own(request):
    with tracer.start_as_current_span("own"):
        return HttpResponse("own")


async def own_async(request, number):
    with tracer.start_as_current_span("own"):
        return HttpResponse("own")


def fail(request):
    raise RuntimeError("this view fails")


def orm(request, database):
    """Create a table of our own, write and read through the ORM, drop it; all in this one request."""
    from mysite.models import Item

    Item._meta.db_table = f"mysite_item_{request.GET['table']}"
    with connections[database].schema_editor() as editor:
        editor.create_model(Item)
    try:
        Item.objects.using(database).create(name="secret-value")
        names = Item.objects.using(database).filter(name=Value("secret-value")).values_list("name", flat=True)
        return HttpResponse(",".join(names))
    finally:
        with connections[database].schema_editor() as editor:
            editor.delete_model(Item)


urlpatterns = [
    path("pid", pid),
    path("own", own),
    path("own-async/<int:number>", own_async),
    path("fail", fail),
    path("orm/<str:database>", orm),
]
