from django.conf.urls.i18n import i18n_patterns
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import FileResponse, Http404, HttpResponse, HttpResponseServerError, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import include, path, re_path
from rest_framework import exceptions, routers, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.response import Response


def show(request, **kwargs):
    return HttpResponse(str(sorted(kwargs.items())))


def fail(request, kind):
    if kind == "404":
        raise Http404("no such thing")
    if kind == "denied":
        raise PermissionDenied
    if kind == "suspicious":
        raise SuspiciousOperation("odd")
    if kind == "503":
        return HttpResponseServerError(status=503)
    if kind == "redirect":
        return redirect("/items/1/")
    raise ValueError(kind)


def file(request):
    return FileResponse(open(__file__, "rb"), content_type="text/plain")


def stream(request):
    return StreamingHttpResponse(iter([b"one ", b"two"]))


class Serializer(serializers.Serializer):
    name = serializers.CharField()


class Users(viewsets.ViewSet):
    def list(self, request):
        return Response([])

    def create(self, request):
        Serializer(data=request.data).is_valid(raise_exception=True)
        return Response({}, status=201)

    def retrieve(self, request, pk=None):
        if pk == "404":
            raise exceptions.NotFound
        if pk == "denied":
            raise exceptions.PermissionDenied
        if pk == "broken":
            raise ValueError(pk)
        return Response({"pk": pk})

    @action(detail=True)
    def friends(self, request, pk=None):
        return Response([])


router = routers.DefaultRouter()
router.register("users", Users, basename="user")

third = ([path("<slug:slug>/", show, name="show")], "third")
second = ([path("<int:year>/", include(third, namespace="third"))], "second")

urlpatterns = [
    path("", show),
    path("items/<int:item>/", show),
    re_path(r"^old/(?P<year>[0-9]{4})/$", show),
    path("mixed/", include([re_path(r"^(?P<id>[0-9]+)/$", show)])),
    path("nested/", include(second, namespace="second")),
    path("fail/<kind>", fail),
    path("file", file),
    path("stream", stream),
    path("api/", include(router.urls)),
    *i18n_patterns(path("greet/<name>/", show)),
]
