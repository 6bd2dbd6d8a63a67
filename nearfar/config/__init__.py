"""Settings: one TOML file and the environment, read here and nowhere else, checked before anything is built.

Values come from, strongest first: `NEARFAR_<SECTION>_<KEY>` variables, the file, what is found (keys in the
environment), the defaults. pydantic checks the types; pydantic-settings is not used, because it doubles the import
time (78 to 152 ms) and does not say where a value came from. Each module has what its tables may say, and reads them.
"""

from .settings import Settings

__all__ = ["Settings"]
