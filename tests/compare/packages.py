"""Packages from PyPI, of every build, and what a program may do with each in a moment."""

PROGRAMS = {
    # C, Cython, Fortran, with libraries of their own beside them
    "numpy": """
        import numpy, numpy.fft, numpy.random, numpy.testing
        print(abs(numpy.fft.fft(numpy.arange(8.0))).round(6), numpy.random.default_rng(0).integers(9, size=3))
        try:
            numpy.ones(2) @ numpy.ones(3)
        except ValueError:
            print(traceback.format_exc())
        numpy.float64(1) / 0
    """,
    "scipy": """
        import scipy, scipy.interpolate
        print(scipy.interpolate.CubicSpline(range(5), [0, 1, 4, 9, 16])(2.5).round(6))
        print(scipy.linalg.det([[1, 2], [3, 4]]).round(6), scipy.special.gamma(5))
    """,
    "pandas": """
        import pandas
        print(pandas.DataFrame({"a": [1, 2, 3], "b": list("xyx")}).groupby("b").sum())
        try:
            pandas.DataFrame()["missing"]
        except KeyError:
            print(traceback.format_exc())
    """,
    "matplotlib": """
        import hashlib, io, subprocess
        # It searches for fonts once.
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)
        import matplotlib
        matplotlib.use("agg")
        import matplotlib.pyplot
        matplotlib.pyplot.plot([1, 4, 9])
        drawing = io.BytesIO()
        matplotlib.pyplot.savefig(drawing, format="png")
        print(hashlib.md5(drawing.getvalue()).hexdigest())
    """,
    "scikit-learn": """
        import sklearn.datasets, sklearn.linear_model
        x, y = sklearn.datasets.load_iris(return_X_y=True)
        print(sklearn.linear_model.Ridge().fit(x, y).coef_.round(6))
    """,
    "scikit-image": """
        import skimage
        print(skimage.filters.gaussian(skimage.data.camera()[:9, :9]).mean().round(6))
        print(sorted(dir(skimage)))
    """,
    "xarray": """
        import xarray
        print(xarray.DataArray([1.0, 2.0], dims="x", coords={"x": [1, 2]}).mean().item())
        print(sorted(xarray.backends.list_engines()))
    """,
    # Older ones need no package that lacks a wheel, and do not work with the numpy of today.
    "dask[array,dataframe]>=2024": """
        import dask, dask.array, dask.dataframe
        print(dask.array.ones((8, 8), chunks=4).sum().compute(scheduler="synchronous"))
        dask.config.get("missing", None)
    """,
    "h5py": """
        import h5py
        with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
            file["x"] = [1, 2, 3]
            print(file["x"][1:].sum())
    """,
    "netCDF4": """
        import netCDF4
        with netCDF4.Dataset("in memory", "w", diskless=True) as file:
            file.createDimension("x", 3)
            file.createVariable("v", "f8", ("x",))[:] = 2
            print(file["v"][:].sum())
    """,
    "astropy": """
        import astropy, astropy.coordinates, astropy.table, astropy.units
        print(astropy.coordinates.SkyCoord(10 * astropy.units.deg, 20 * astropy.units.deg).galactic)
        print(astropy.table.Table({"a": [1, 2]}))
    """,
    "sympy": """
        import sympy
        x = sympy.Symbol("x")
        print(sympy.integrate(sympy.sin(x) ** 2, x))
    """,
    "numba": """
        import numba, numpy
        print(numba.njit(lambda values: values.sum())(numpy.arange(5)))
        try:
            numba.njit(lambda: missing)()
        except numba.core.errors.TypingError:
            print(traceback.format_exc())
    """,
    "jax[cpu]": """
        import jax, jax.numpy
        print(jax.grad(lambda x: jax.numpy.sin(x) ** 2)(1.0).round(4))
    """,
    "pyarrow": """
        import pyarrow, pyarrow.compute, pyarrow.parquet
        table = pyarrow.table({"a": [1, 2, 3]})
        pyarrow.parquet.write_table(table, pyarrow.BufferOutputStream())
        print(pyarrow.compute.sum(table["a"]).as_py())
    """,
    "biopython": """
        import Bio.Seq, Bio.Align
        print(Bio.Seq.Seq("ATGGCC").translate(), Bio.Align.PairwiseAligner().score("GATTACA", "GCATGCA"))
    """,
    "cython": """
        import Cython, Cython.Compiler.Main
        print(Cython.__version__)
    """,
    "pillow": """
        import PIL.Image
        print(PIL.Image.new("RGB", (2, 2), "red").convert("L").tobytes())
    """,
    "lxml": """
        import lxml.etree, lxml.html
        print(lxml.etree.tostring(lxml.html.fromstring("<p>a<b>c")))
        try:
            lxml.etree.fromstring("<a>")
        except lxml.etree.XMLSyntaxError:
            print(traceback.format_exc())
    """,
    "grpcio": """
        import grpc
        grpc.insecure_channel("localhost:1").close()
        print(grpc.StatusCode.OK)
    """,
    "msgpack": """
        import msgpack
        print(msgpack.unpackb(msgpack.packb({"a": [1, 2]})))
    """,
    "pyyaml": """
        import yaml
        print(yaml.load("a: [1, 2]", yaml.CSafeLoader))
    """,
    "aiohttp": """
        import aiohttp, aiohttp.web
        print(aiohttp.web.Response(text="a").body)
    """,
    # CFFI
    "cffi": """
        import cffi
        ffi = cffi.FFI()
        ffi.cdef("size_t strlen(const char *);")
        print(ffi.dlopen(None).strlen(b"four"))
    """,
    "pyzmq": """
        import zmq
        with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
            print(socket.closed)
    """,
    # Rust
    "cryptography": """
        import cryptography.fernet, cryptography.hazmat.primitives.hashes, cryptography.x509
        digest = cryptography.hazmat.primitives.hashes.Hash(cryptography.hazmat.primitives.hashes.SHA256())
        print(digest.finalize().hex())
        try:
            cryptography.fernet.Fernet(b"A" * 43 + b"=").decrypt(b"no token")
        except cryptography.fernet.InvalidToken:
            print(traceback.format_exc())
    """,
    "bcrypt": """
        import bcrypt
        print(bcrypt.hashpw(b"a", b"$2b$04$......................"))
    """,
    "orjson": """
        import orjson
        print(orjson.dumps({"a": 1}))
    """,
    "polars": """
        import polars
        print(polars.DataFrame({"a": [1, 2, 3]}).select(polars.col("a").sum()).item())
    """,
    "pydantic": """
        import pydantic
        class Model(pydantic.BaseModel):
            value: int
        print(Model(value="3"))
        try:
            Model(value="three")
        except pydantic.ValidationError:
            print(traceback.format_exc())
    """,
    "rpds-py": """
        import rpds
        print(rpds.HashTrieMap(a=1))
    """,
    "tokenizers": """
        import tokenizers
        print(tokenizers.Tokenizer(tokenizers.models.BPE()).get_vocab_size())
    """,
    # namespace packages, packages made at run time, and vendored ones
    "protobuf": """
        import google.protobuf.timestamp_pb2
        print(google.protobuf.timestamp_pb2.Timestamp(seconds=5), google.__path__)
    """,
    "google-api-core": """
        import google.api_core.exceptions, google.rpc.status_pb2
        print(google.api_core.exceptions.NotFound("a"), google.rpc.status_pb2.Status(code=3))
    """,
    "zope.interface": """
        import zope.interface
        print(zope.interface.Interface, zope.__path__)
    """,
    "ruamel.yaml": """
        import ruamel.yaml
        print(ruamel.yaml.YAML(typ="safe").load("a: 1"))
    """,
    "six": """
        import six, six.moves
        from six.moves import configparser, urllib
        from six.moves.urllib.parse import quote
        print(quote("a b"), six.moves.range, configparser.__name__)
    """,
    "requests": """
        import requests, requests.packages.urllib3
        print(requests.Request("GET", "http://localhost/", params={"a": 1}).prepare().url, requests.certs.where())
    """,
    "setuptools": """
        import setuptools, setuptools.command.build_ext
        import distutils.core
        print(setuptools.__version__, distutils.core.__file__)
    """,
    # pure Python: entry points, data files, import hooks, code made at run time
    "pytest": """
        import pytest, _pytest.assertion.rewrite
        print(pytest.__version__, sorted(one.name for one in importlib.metadata.entry_points()["console_scripts"])
              if sys.version_info < (3, 10) else sorted(importlib.metadata.entry_points().groups))
    """,
    "pluggy": """
        import pluggy
        print(pluggy.PluginManager("sample").load_setuptools_entrypoints("pytest11"))
    """,
    "keyring": """
        import keyring, keyring.backend
        print(sorted(map(str, keyring.backend.get_all_keyring())))
    """,
    "sqlalchemy": """
        import sqlalchemy, sqlalchemy.orm
        engine = sqlalchemy.create_engine("sqlite://")
        with engine.connect() as connection:
            print(connection.execute(sqlalchemy.text("select 1 + 1")).scalar())
            try:
                connection.execute(sqlalchemy.text("select missing"))
            except sqlalchemy.exc.OperationalError:
                print(traceback.format_exc())
        engine.dispose()
    """,
    "django": """
        import django, django.conf
        django.conf.settings.configure(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"])
        django.setup()
        print(sorted(django.apps.apps.app_configs), django.template.Engine().from_string("{{ 1 }}").name)
    """,
    "fastapi": """
        import fastapi
        print(sorted(fastapi.FastAPI().openapi()))
    """,
    "httpx": """
        import httpx
        print(httpx.URL("http://localhost/a"))
    """,
    "hypothesis": """
        import hypothesis, hypothesis.strategies
        print(hypothesis.strategies.integers())
    """,
    "ipython": """
        import IPython, IPython.core.interactiveshell
        print(IPython.core.interactiveshell.InteractiveShell.__mro__)
    """,
    "jinja2": """
        import jinja2
        try:
            jinja2.Template("{{ 1 }}{{ missing.a }}").render()
        except jinja2.UndefinedError:
            print(traceback.format_exc())
    """,
    "networkx": """
        import networkx
        print(networkx.shortest_path(networkx.path_graph(4), 0, 3), len(networkx.utils.backends.backends))
    """,
    "attrs": """
        import attr, attrs
        print(attrs.define(type("C", (), {"__annotations__": {"a": int}}))(1))
    """,
    "arrow": """
        import arrow
        print(arrow.get(0).humanize(arrow.get(3600), locale="de"))
    """,
    "tqdm": """
        import tqdm, tqdm.auto
        print(list(tqdm.tqdm([1], disable=True)))
    """,
    "rich": """
        import rich, rich.console, rich.traceback
        rich.print("[bold]text[/]")
        try:
            1 / 0
        except ZeroDivisionError:
            rich.console.Console(width=90).print_exception()
    """,
    "mpi4py": """
        from mpi4py import MPI
        print(MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.size)
    """,
}
"""For each requirement, the code of a program. What it prints is compared."""

FEW = [
    *("numpy", "pandas", "scikit-image", "mpi4py", "lxml", "cryptography", "pydantic", "protobuf", "six", "requests"),
    *("pytest", "pluggy", "sqlalchemy", "rich"),
]
"""Those that the environment of these tests has: of every build."""

GROUPS = {
    "arrays": ["numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "scikit-image"],
    "files": ["xarray", "dask[array,dataframe]>=2024", "h5py", "netCDF4", "pyarrow"],
    "science": ["astropy", "sympy", "biopython", "networkx"],
    "compilers": ["numba", "jax[cpu]", "cython", "cffi"],
    "native": ["pillow", "lxml", "grpcio", "msgpack", "pyyaml", "aiohttp", "pyzmq", "mpi4py"],
    "Rust": ["cryptography", "bcrypt", "orjson", "polars", "pydantic", "rpds-py", "tokenizers"],
    "namespaces": ["protobuf", "google-api-core", "zope.interface", "ruamel.yaml", "six", "requests", "setuptools"],
    "plugins": ["pytest", "pluggy", "keyring", "sqlalchemy", "django", "hypothesis", "ipython"],
    "pure": ["fastapi", "httpx", "jinja2", "attrs", "arrow", "tqdm", "rich"],
}
"""What is used by one program: each requirement is in one of them."""
