"""Point any OpenAI client at `nearfar serve`; needs `pip install openai`."""

import sys

from openai import OpenAI

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8642/v1"
client = OpenAI(base_url=base_url, api_key="none")

completion = client.chat.completions.create(
    model="auto",
    messages=[{"role": "user", "content": "What is the capital of Japan?"}],
    extra_body={"nearfar": {"privacy": "near"}},
)

print(completion.choices[0].message.content)
print(completion.model_extra["nearfar"]["tier"])
