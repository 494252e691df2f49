// What the stand-in's compiler puts before a source with <<<>>>.
#pragma once

#include <cstdint>
#include <functional>

// A kernel of vector cores alone is known by where its code lies.
#define __vector__ __attribute__((section(".text.vector")))

// Given by the link of this compiler, and by no other.
void standin_enqueue(const char* kernel, uint32_t blocks, void* stream, bool allocates,
                     const std::function<void()>& run);

template <class... Parameters, class... Arguments>
void standin_launch(void (*kernel)(Parameters...), const char* name, uint32_t blocks, void* stream,
                    Arguments... arguments) {
  standin_enqueue(name, blocks, stream, STANDIN_DUMP, [=] { kernel(arguments...); });
}
