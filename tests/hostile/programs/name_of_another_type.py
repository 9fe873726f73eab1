# An exception whose class has for a name a text that lies about itself.
# expect: failed
class S(str):
    def __getitem__(self, key): return ""
    def __eq__(self, other): return True
    def __len__(self): return 0
    __hash__ = str.__hash__
raise type(S("Timeout"), (Exception,), {})
