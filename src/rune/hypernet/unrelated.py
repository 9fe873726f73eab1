"""Plain texts that no trajectory should change the model on: the KL-to-base term is taken over them.

Built in, so that the term needs no data set and means the same in every run.
"""

TEXTS = (
    "def is_prime(n):\n    if n < 2:\n        return False\n    return all(n % d for d in range(2, int(n**0.5) + 1))\n",
    "class Stack:\n    items = []\n\n    def push(self, x):\n        self.items.append(x)\n",
    "SELECT name, COUNT(*) FROM orders JOIN users ON users.id = orders.user_id GROUP BY name HAVING COUNT(*) > 3;\n",
    "function once(fn) {\n  let done = false;\n  return (...a) => { if (!done) { done = true; fn(...a); } };\n}\n",
    "The capital of France is Paris. The Seine runs through the city, and its oldest bridge is called the new one.\n",
    "To reverse a linked list, keep three pointers: the previous node, the current one and the next.\n",
    "import numpy as np\n\ndef softmax(x):\n    e = np.exp(x - x.max())\n    return e / e.sum()\n",
    "Q: A train leaves at 9:40 and takes 85 minutes. When does it arrive?\nA: At 11:05.\n",
    "def merge(a, b):\n    out = []\n    while a and b:\n        out += [min(a, b).pop(0)]\n    return out + a + b\n",
    "A hash table gives constant time look-up on average because the key's hash names the bucket directly.\n",
    "for i in range(1, 101):\n    print('Fizz' * (i % 3 == 0) + 'Buzz' * (i % 5 == 0) or i)\n",
    '#include <stdio.h>\n\nint main(void) {\n    printf("Hello, world\\n");\n    return 0;\n}\n',
    "Water boils at 100 degrees Celsius at sea level; on a mountain of three kilometres it boils at about 90.\n",
    "with open('data.csv') as handle:\n    rows = [line.rstrip().split(',') for line in handle]\n",
    "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "Explain recursion to a child: to find the end of a line, ask the person in front of you to do the same.\n",
)
