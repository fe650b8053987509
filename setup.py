from configparser import ConfigParser

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
project = settings["DEFAULT"]
needs = {key.removesuffix("requirements").strip("_"): project[key].strip().split("\n")
         for key in project if key.endswith("requirements")}
everything = [line for lines in needs.values() for line in lines]
setup(
    name=project["lib_name"], version=project["version"], description=project["description"],
    author=project["author"], license=project["license"], keywords=project["keywords"],
    python_requires=f">={project['min_python']}", packages=find_packages(include=["ssl_expr", "ssl_expr.*"]),
    package_data={"ssl_expr": ["datasets/*", "models/*/*"]}, install_requires=needs[""],
    extras_require=dict(study=needs["study"], cluster=needs["study"] + needs["cluster"], dev=everything),
    entry_points={"console_scripts": [project["console_scripts"]]},
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
)
