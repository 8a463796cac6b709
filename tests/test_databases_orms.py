"""ORMs and pools over the drivers."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from querying import REGISTER, Database, Run


@pytest.mark.parametrize("database", ["MySQLdb", "psycopg2", "psycopg", "sqlite3"], indirect=True)
def test_django_s_models_make_one_span_a_query(run: Run, need: Callable[[str], None], database: Database) -> None:
    need("django")
    engine = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite3"}[database.system]
    block = "sys.modules['psycopg'] = None\n" if database.module == "psycopg2" else ""
    result = run(
        block
        + REGISTER
        + f"""
import django
from django.conf import settings
names = {{"dbname": "NAME", "database": "NAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}}
database = {{names[key]: value for key, value in ADDRESS.items()}}
database["ENGINE"] = "django.db.backends.{engine}"
settings.configure(DATABASES={{"default": database}}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
django.setup()
from django.db import connection, models
class Thing(models.Model):
    name = models.TextField()
    class Meta:
        app_label = "things"
        db_table = TABLE
with connection.schema_editor() as editor:
    editor.create_model(Thing)
try:
    Thing.objects.create(name="connected")
    with parent():
        Thing.objects.create(name=SECRET)
        found = Thing.objects.get(name=SECRET).name
        many = Thing.objects.filter(name__startswith="s3").count()
finally:
    with connection.schema_editor() as editor:
        editor.delete_model(Thing)
connection.close()
report(found=found, many=many, database=[connection.vendor, connection.Database.__name__])
""",
        database.address,
    )
    assert result.facts["found"] == "s3cret-value"
    assert result.facts["many"] == 1
    assert [span["name"] for span in result.spans] == ["INSERT", "SELECT", "SELECT"]
    assert "s3cret-value" not in json.dumps(result.spans)
    assert {span["attributes"]["db.system.name"] for span in result.spans} == {database.system}
