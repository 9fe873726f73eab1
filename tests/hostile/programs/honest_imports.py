# Imports half the standard library.
# expect: passed
import argparse, asyncio, base64, bisect, collections, csv, ctypes, difflib, email, html, io, logging, pathlib, pickle, pprint
import secrets, shutil, sqlite3, tempfile, time, unittest, urllib.parse, uuid, xml.etree.ElementTree, zlib, zoneinfo, concurrent.futures
def solve(x): return sorted(x)
